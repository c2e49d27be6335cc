//! Credential provider programs, as the kubelet runs them: asked by JSON on standard input, answering on standard output
//! (`credentialprovider.kubelet.k8s.io`), their answers kept as long as they say.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::process::Stdio;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde::Deserialize;
use serde_json::json;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;
use tracing::warn;

use super::credentials::{Credential, matches};
use super::types::Provider;

/// Bytes of an answer.
const MAX_ANSWER: u64 = 1 << 20;
/// Bytes of what a program says of its troubles that are passed on.
const MAX_TROUBLE: u64 = 1 << 10;

/// `CredentialProviderResponse`.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Answer {
    kind: String,
    api_version: String,
    cache_key_type: String,
    cache_duration: Option<String>,
    #[serde(default)]
    auth: Option<BTreeMap<String, Login>>,
}

#[derive(Deserialize)]
struct Login {
    username: String,
    password: String,
}

struct Cached {
    until: Instant,
    logins: Vec<Credential>,
}

/// The programs, and what they have said.
pub struct Providers {
    all: Vec<Provider>,
    /// By provider and cache key.
    cache: Mutex<HashMap<(usize, String), Cached>>,
}

impl Providers {
    /// Nothing runs yet.
    pub fn new(all: Vec<Provider>) -> Self {
        Self { all, cache: Mutex::default() }
    }

    /// The logins for an image (`host/repository`), and what went wrong: one that fails does not hold up the others.
    pub async fn logins(&self, image: &str) -> (Vec<Credential>, Vec<String>) {
        let (host, repository) = image.split_once('/').unwrap_or((image, ""));
        let (mut logins, mut problems) = (Vec::new(), Vec::new());
        for (number, provider) in self.all.iter().enumerate() {
            if !provider.match_images.iter().any(|m| matches(m, host, repository)) {
                continue;
            }
            match self.ask(number, provider, image, host).await {
                Ok(found) => logins.extend(found),
                Err(error) => {
                    let problem = format!("credential provider {}: {error}", provider.name);
                    warn!(image, problem, "going on without its logins");
                    problems.push(problem);
                }
            }
        }
        (logins, problems)
    }

    async fn ask(
        &self,
        number: usize,
        provider: &Provider,
        image: &str,
        host: &str,
    ) -> Result<Vec<Credential>, String> {
        // the kubelet's order, the narrowest first
        let keys = [image, host, "global"].map(|key| (number, key.to_owned()));
        {
            let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
            let now = Instant::now();
            cache.retain(|_, cached| cached.until > now);
            if let Some(cached) = keys.iter().find_map(|key| cache.get(key)) {
                return Ok(cached.logins.clone());
            }
        }
        let answer = run(provider, image).await?;
        let key = match answer.cache_key_type.as_str() {
            "Image" => &keys[0],
            "Registry" => &keys[1],
            "Global" => &keys[2],
            other => return Err(format!("cacheKeyType {other:?}: it is Image, Registry or Global")),
        };
        let duration = match &answer.cache_duration {
            None => provider.default_cache_duration,
            Some(text) => {
                let parsed = text.parse::<jiff::SignedDuration>().ok().and_then(|d| Duration::try_from(d).ok());
                parsed.ok_or_else(|| format!("cacheDuration {text:?}: it is a duration such as 1h"))?
            }
        };
        let login = |(registry, login): (String, Login)| Credential {
            registry,
            username: login.username,
            password: login.password,
            ..Credential::default()
        };
        let logins: Vec<Credential> = answer.auth.into_iter().flatten().map(login).collect();
        if let Some(until) = Instant::now().checked_add(duration).filter(|_| !duration.is_zero()) {
            let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
            cache.insert(key.clone(), Cached { until, logins: logins.clone() });
        }
        Ok(logins)
    }
}

/// Runs a program once.
async fn run(provider: &Provider, image: &str) -> Result<Answer, String> {
    let version = &provider.api_version;
    let request = json!({"kind": "CredentialProviderRequest", "apiVersion": version, "image": image}).to_string();
    let mut command = Command::new(&provider.program);
    command.args(&provider.args).envs(provider.env.iter().cloned());
    // a group of its own: what it has started ends with it
    command.process_group(0).kill_on_drop(true);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|e| format!("starting {}: {e}", provider.program.display()))?;
    let group = child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw);
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let talk = async {
        let send = async {
            if let Some(mut stdin) = stdin {
                // one that does not want to hear may still answer
                let _ = stdin.write_all(request.as_bytes()).await;
            }
        };
        let ((), answer, trouble) = tokio::join!(send, all(stdout, MAX_ANSWER), all(stderr, MAX_TROUBLE));
        Ok::<_, io::Error>((answer?, trouble?, child.wait().await?))
    };
    let outcome = tokio::time::timeout(provider.timeout, talk).await;
    if outcome.is_err()
        && let Some(group) = group
    {
        // it may have ended just now
        let _ = killpg(group, Signal::SIGKILL);
    }
    let seconds = provider.timeout.as_secs_f32();
    let (answer, trouble, status) =
        outcome.map_err(|_| format!("no answer within {seconds} s"))?.map_err(|e| e.to_string())?;
    if !status.success() {
        return Err(format!("{status}: {}", String::from_utf8_lossy(&trouble).trim()));
    }
    if answer.len() as u64 >= MAX_ANSWER {
        return Err(format!("an answer of more than {MAX_ANSWER} bytes"));
    }
    let answer: Answer = serde_json::from_slice(&answer).map_err(|e| format!("its answer is not understood: {e}"))?;
    if answer.kind != "CredentialProviderResponse" || answer.api_version != *version {
        let (kind, got) = (answer.kind, answer.api_version);
        return Err(format!("it answered {kind} of {got}, CredentialProviderResponse of {version} is wanted"));
    }
    Ok(answer)
}

/// What there is to read, of which so many bytes are kept.
async fn all(from: Option<impl AsyncRead + Unpin>, most: u64) -> io::Result<Vec<u8>> {
    let Some(mut from) = from else { return Ok(Vec::new()) };
    let mut text = Vec::new();
    (&mut from).take(most).read_to_end(&mut text).await?;
    tokio::io::copy(&mut from, &mut tokio::io::sink()).await?;
    Ok(text)
}
