//! What can be known before a node joins: is there a server, is it the cluster's, does it take what it is shown.
//!
//! Nothing is changed, here or there, and nothing secret is sent to a server that did not show who it is.

use jiff::Timestamp;
use k8s_openapi::api::authentication::v1::SelfSubjectReview;
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec, SubjectAccessReviewStatus,
};
use kube::api::PostParams;
use kube::client::ClientBuilder;
use kube::{Client, Config};
use reqwest::Url;
use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;

use super::answer::{Answer, Api};
use super::bootstrap::{Bootstrap, Source, server_of};
use super::client::{ClusterError, connect, said, way};
use super::https::{self, CONNECT, Trust};
use super::join::{Join, Node, shows_k3s, was_k3s};
use super::k3s::{Proof, Token};
use crate::machine::check::{Finding, State};

/// Clocks that differ by more make certificates that were just made, or are about to end, look wrong; in seconds.
const NOTICEABLE: i64 = 60;
/// With more, kubeadm's signers, which date certificates back by five minutes, are of no help.
const TOO_FAR: i64 = 300;

/// Looks at everything there is to know of a way to join.
pub async fn preflight(how: &Join, node: &Node) -> Vec<Finding> {
    crate::crypto::install();
    let mut findings = Vec::new();
    if let Err(finding) = look(how, node, &mut findings).await {
        findings.push(finding);
    }
    findings
}

fn wrong(check: &str, found: impl Into<String>) -> Finding {
    // what was found says what to do
    Finding::new(check, State::Missing, found, None)
}

/// Ends with the first finding that makes what comes after it pointless.
async fn look(how: &Join, node: &Node, findings: &mut Vec<Finding>) -> Result<(), Finding> {
    let server = server(how).await.map_err(|e| wrong("server", e))?;
    reach(&server, findings).await?;
    let how = match how {
        Join::Ask { k3s, bootstrap } => {
            let k3s_server = match was_k3s(&server, node) {
                Some(known) => known,
                None => shows_k3s(&server).await.map_err(|e| wrong("server", e))?,
            };
            if k3s_server { k3s } else { bootstrap }
        }
        other => other,
    };
    match how {
        Join::Kubeconfig(file) => {
            let client = connect(file).await.map_err(|e| wrong("kubeconfig", e.to_string()))?;
            findings.push(user(client, node).await);
        }
        Join::Bootstrap { source, kubeconfig } => {
            bootstrap(&node.bootstrap(source, kubeconfig), node, findings).await?;
        }
        Join::K3s { server, token } => k3s(server, token.as_ref(), node, findings).await?,
        Join::Ask { .. } => {}
    }
    Ok(())
}

/// URL of the server that is going to be asked.
async fn server(how: &Join) -> Result<String, String> {
    match how {
        Join::K3s { server, .. } => Ok(server.clone()),
        Join::Bootstrap { source, .. } => source.server().await,
        Join::Ask { k3s, .. } => Box::pin(server(k3s)).await,
        Join::Kubeconfig(file) => server_of(file).await,
    }
}

/// Its name, its port, and what time it has.
async fn reach(server: &str, findings: &mut Vec<Finding>) -> Result<(), Finding> {
    let url = Url::parse(server).map_err(|e| wrong("server", format!("{server}: {e}")))?;
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']).to_owned();
    let port = url.port_or_known_default().unwrap_or(443);
    let found = lookup_host((host.as_str(), port)).await.map(|all| all.map(|a| a.ip()).collect::<Vec<_>>());
    let ips = found.ok().filter(|ips| !ips.is_empty()).ok_or_else(|| {
        let mend = "is it spelled right? else use its address, or look at /etc/resolv.conf";
        Finding::missing("server name", format!("{host} has no address"), mend)
    })?;
    let known = ips.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    findings.push(Finding::ok("server name", if known == host { host.clone() } else { format!("{host} is {known}") }));
    let connected = timeout(CONNECT, TcpStream::connect((host.as_str(), port))).await;
    let closed = |why: String| {
        let mend = "is the server up, is this its port, is a firewall between?";
        Finding::missing("server port", format!("{host} port {port}: {why}"), mend)
    };
    connected.map_err(|_| closed("no answer".to_owned()))?.map_err(|e| closed(e.to_string()))?;
    findings.push(Finding::ok("server port", format!("{port} is open")));
    let asked = async { https::get(&https::client(Trust::Anybody, None)?, &format!("{server}/version")).await };
    let answer = asked.await.map_err(|e| wrong("server", format!("{server}: {e}: does it speak HTTPS?")))?;
    findings.extend(answer.date.map(|theirs| clock(Timestamp::now(), theirs)));
    Ok(())
}

/// This machine's clock beside that of the server.
fn clock(ours: Timestamp, theirs: Timestamp) -> Finding {
    let (check, apart) = ("server clock", (ours.as_second() - theirs.as_second()).abs());
    let found = format!("{theirs:.0} there (nobody vouches for it), {ours:.0} here");
    let mend = "let systemd-timesyncd or chrony keep both; for now `date -s` sets this one";
    if apart <= NOTICEABLE {
        return Finding::ok(check, "as this machine's");
    }
    if apart <= TOO_FAR { Finding::warning(check, found, mend) } else { Finding::missing(check, found, mend) }
}

/// A kubeconfig must be of the node that is going to use it.
async fn user(client: Client, node: &Node) -> Finding {
    let api: Api<SelfSubjectReview> = Api::all(client);
    let who =
        match api.create(&PostParams::default(), &SelfSubjectReview::default().into()).await.and_then(Answer::read) {
            Ok(review) => review.status.and_then(|s| s.user_info).and_then(|u| u.username).unwrap_or_default(),
            Err(error) => return wrong("kubeconfig", ClusterError::api("asking who this is")(error).to_string()),
        };
    if who == format!("system:node:{}", node.name) {
        return Finding::ok("kubeconfig", format!("of {who}"));
    }
    let mend = match who.strip_prefix("system:node:") {
        Some(name) => format!("--node-name {name}, or another kubeconfig"),
        None => format!("make one for system:node:{}, in the group system:nodes", node.name),
    };
    Finding::missing("kubeconfig", format!("of {who}, not of system:node:{}", node.name), mend)
}

/// Whether the API server does not know who asks.
async fn is_refused(client: &Client) -> bool {
    let asked = client.apiserver_version().await;
    matches!(asked, Err(kube::Error::Api(answer)) if answer.code == 401)
}

async fn bootstrap(how: &Bootstrap, node: &Node, findings: &mut Vec<Finding>) -> Result<(), Finding> {
    if let Some(client) = how.client().await.map_err(|e| wrong("membership", e))? {
        if !is_refused(&client).await {
            findings.push(Finding::ok("membership", "this node has joined this cluster before"));
            findings.push(user(client, node).await);
            return Ok(());
        }
        findings.push(Finding::warning(
            "membership",
            "this node has joined this cluster before, but its certificate is no longer accepted",
            "it asks for another one by the token",
        ));
    }
    let (config, cluster) = how.admission().await.map_err(|e| wrong("cluster", e))?;
    let by = match &how.source {
        Source::Token { pins, .. } if pins.is_empty() => {
            let mend = "--ca-cert-hash makes sure: whoever knows the token could be the server";
            Finding::warning("cluster", format!("{}, by the token alone", cluster.server), mend)
        }
        Source::Token { .. } => Finding::ok("cluster", format!("{}, by token and hash of its CA", cluster.server)),
        Source::Kubeconfig(_) => Finding::ok("cluster", cluster.server),
    };
    findings.push(by);
    findings.push(may_ask(&config).await.map_err(|e| wrong("token", e))?);
    Ok(())
}

/// Whether the credentials are good for what bootstrapping asks.
async fn may_ask(config: &Config) -> Result<Finding, String> {
    let client = ClientBuilder::new(way(config)?, "default").build();
    let attributes = ResourceAttributes {
        group: Some("certificates.k8s.io".to_owned()),
        resource: Some("certificatesigningrequests".to_owned()),
        verb: Some("create".to_owned()),
        ..ResourceAttributes::default()
    };
    let spec = SelfSubjectAccessReviewSpec { resource_attributes: Some(attributes), ..Default::default() };
    let review = SelfSubjectAccessReview { spec, ..SelfSubjectAccessReview::default() };
    match Api::all(client).create(&PostParams::default(), &review.into()).await.and_then(Answer::read) {
        Ok(SelfSubjectAccessReview { status: Some(SubjectAccessReviewStatus { allowed: true, .. }), .. }) => {
            Ok(Finding::ok("token", "accepted, and may ask for a certificate"))
        }
        Ok(_) => Ok(Finding::missing(
            "token",
            "accepted, but may not ask for a certificate",
            "kubectl create clusterrolebinding kubeadm:kubelet-bootstrap --clusterrole=system:node-bootstrapper \
             --group=system:bootstrappers:kubeadm:default-node-token (or the token's own group)",
        )),
        Err(kube::Error::Api(answer)) if answer.code == 401 => Ok(Finding::missing(
            "token",
            "not accepted: it is another one, or expired",
            "`kubeadm token create --print-join-command` on the control plane makes another",
        )),
        Err(error) => Err(said(&error)),
    }
}

async fn k3s(server: &str, token: Option<&Token>, node: &Node, findings: &mut Vec<Finding>) -> Result<(), Finding> {
    let how = node.k3s(server, token);
    if how.client().await.map_err(|e| wrong("membership", e))?.is_some() {
        findings.push(Finding::ok("membership", "this node has joined this server before"));
        return Ok(());
    }
    let token = token.ok_or_else(|| {
        let mend = "--token: `k3s token create` on the server makes one, or it is in its \
                    /var/lib/rancher/k3s/server/agent-token";
        Finding::missing("token", format!("none, and this node is no member of {server}"), mend)
    })?;
    let supervisor = how.discover(server, token).await.map_err(|e| wrong("cluster", e))?;
    findings.push(match supervisor.proof {
        Proof::Hash => Finding::ok("cluster", format!("{server}, by the hash in the token")),
        Proof::Kept => Finding::ok("cluster", format!("{server}, by the CA this node knows")),
        Proof::System => Finding::ok("cluster", format!("{server}, by a CA of this system")),
        Proof::Nothing => {
            let found = format!("whoever answers at {server}, as unsafeSkipCAVerification says");
            Finding::warning("cluster", found, "the whole token, K10<hash>::..., makes sure")
        }
    });
    supervisor.ready().await.map_err(|e| wrong("server", e))?;
    supervisor.get("/v1-k3s/config").await.map_err(|e| wrong("token", e))?;
    findings.push(Finding::ok("token", "accepted"));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks_may_differ_a_little() {
        let theirs: Timestamp = "2026-11-21T12:00:00Z".parse().unwrap();
        let state = |seconds| clock(theirs + jiff::SignedDuration::from_secs(seconds), theirs).state;
        assert_eq!([0, -60, 61, -301].map(state), [State::Ok, State::Ok, State::Warning, State::Missing]);
        assert!(clock(Timestamp::UNIX_EPOCH, theirs).found.contains("1970-01-01T00:00:00Z here"));
    }
}
