//! Who may ask the kubelet API for what: client certificates, TokenReview, SubjectAccessReview.
//!
//! Rules: Kubernetes "Kubelet authentication/authorization". Anonymous requests are refused. What the API server
//! answered is remembered for a while; when it cannot be reached and nothing is remembered, the answer is no. Wrong tokens are
//! remembered apart from good ones, and an address may ask about a few unknown ones only.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use http::Method;
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use kube::Client;
use kube::api::PostParams;
use sha2::{Digest, Sha256};

use super::memory::{Kept, Pace};
use crate::cluster::{Answer, Api, said};

const TOKEN_KEPT: Duration = Duration::from_mins(2);
const ALLOWED_KEPT: Duration = Duration::from_mins(5);
const DENIED_KEPT: Duration = Duration::from_secs(30);
/// Answers remembered of each kind.
const REMEMBERED: usize = 1024;
/// Tokens that are not known yet which an address may show at once, and how often one more.
const UNKNOWN: (u32, Duration) = (32, Duration::from_secs(1));

/// Who asks.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct User {
    /// User name.
    pub name: String,
    /// Uid, if the authenticator knows one.
    pub uid: String,
    /// Groups.
    pub groups: Vec<String>,
    /// What else the authenticator says.
    pub extra: BTreeMap<String, Vec<String>>,
}

/// Why a request goes no further: HTTP status and message.
pub type Refused = (http::StatusCode, String);

/// Decides; shared by all connections.
pub struct Access {
    client: Option<Client>,
    node: String,
    tokens: Kept<[u8; 32], User>,
    wrong: Kept<[u8; 32], ()>,
    unknown: Pace,
    decisions: Kept<(User, &'static str, &'static str), bool>,
}

impl Access {
    /// Reviews go to the API server by `client`; without one only client certificates of `system:masters` may enter.
    pub fn new(client: Option<Client>, node: String) -> Self {
        let (tokens, wrong, decisions) = (Kept::new(REMEMBERED), Kept::new(REMEMBERED), Kept::new(REMEMBERED));
        Self { client, node, tokens, wrong, unknown: Pace::new(UNKNOWN.0, UNKNOWN.1), decisions }
    }

    /// The user of a request of `peer`, by its connection's certificate or its bearer token.
    pub async fn authenticate(
        &self,
        certificate: Option<User>,
        bearer: Option<&str>,
        peer: IpAddr,
    ) -> Result<User, Refused> {
        if let Some(user) = certificate {
            return Ok(user);
        }
        let unauthorized = || (http::StatusCode::UNAUTHORIZED, "Unauthorized".to_owned());
        let token = bearer.filter(|t| !t.is_empty()).ok_or_else(unauthorized)?;
        let client = self.client.clone().ok_or_else(unauthorized)?;
        let key: [u8; 32] = Sha256::digest(token).into();
        if let Some(user) = self.tokens.get(&key) {
            return Ok(user);
        }
        if self.wrong.get(&key).is_some() {
            return Err(unauthorized());
        }
        if !self.unknown.may(peer, Instant::now()) {
            let message = "too many unknown tokens come from this address: wait a moment".to_owned();
            return Err((http::StatusCode::TOO_MANY_REQUESTS, message));
        }
        let review = TokenReview {
            spec: TokenReviewSpec { token: token.to_owned(), audiences: None },
            ..TokenReview::default()
        };
        let answer = Api::<TokenReview>::all(client)
            .create(&PostParams::default(), &review.into())
            .await
            .and_then(Answer::read)
            .map_err(|error| {
                tracing::warn!(error = said(&error), "token not reviewed: request refused");
                unauthorized()
            })?;
        let status = answer.status.unwrap_or_default();
        let user = status.user.filter(|_| status.authenticated == Some(true)).map(|u| User {
            name: u.username.unwrap_or_default(),
            uid: u.uid.unwrap_or_default(),
            groups: u.groups.unwrap_or_default(),
            extra: u.extra.unwrap_or_default(),
        });
        match &user {
            Some(user) => self.tokens.put(key, user.clone(), TOKEN_KEPT),
            None => self.wrong.put(key, (), TOKEN_KEPT),
        }
        user.ok_or_else(unauthorized)
    }

    /// Whether `user` may do `method` on `path`.
    pub async fn authorize(&self, user: &User, method: &Method, path: &str) -> Result<(), Refused> {
        let verb = verb(method);
        let subresources = subresources(path);
        for subresource in subresources {
            if self.allowed(user, verb, subresource).await? {
                return Ok(());
            }
        }
        let last = subresources.last().copied().unwrap_or("proxy");
        Err((
            http::StatusCode::FORBIDDEN,
            format!(
                "Forbidden (user={}, verb={verb}, resource=nodes, subresource(s)=[{}])",
                user.name,
                if subresources.len() > 1 { subresources.join(" ") } else { last.to_owned() }
            ),
        ))
    }

    async fn allowed(&self, user: &User, verb: &'static str, subresource: &'static str) -> Result<bool, Refused> {
        let Some(client) = self.client.clone() else {
            return Ok(user.groups.iter().any(|g| g == "system:masters"));
        };
        let key = (user.clone(), verb, subresource);
        if let Some(known) = self.decisions.get(&key) {
            return Ok(known);
        }
        let attributes = ResourceAttributes {
            verb: Some(verb.to_owned()),
            version: Some("v1".to_owned()),
            resource: Some("nodes".to_owned()),
            subresource: Some(subresource.to_owned()),
            name: Some(self.node.clone()),
            ..ResourceAttributes::default()
        };
        let review = SubjectAccessReview {
            spec: SubjectAccessReviewSpec {
                user: Some(user.name.clone()),
                uid: Some(user.uid.clone()).filter(|u| !u.is_empty()),
                groups: Some(user.groups.clone()),
                extra: Some(user.extra.clone()).filter(|e| !e.is_empty()),
                resource_attributes: Some(attributes),
                ..SubjectAccessReviewSpec::default()
            },
            ..SubjectAccessReview::default()
        };
        let reviewed = Api::<SubjectAccessReview>::all(client)
            .create(&PostParams::default(), &review.into())
            .await
            .and_then(Answer::read);
        let answer = reviewed.map_err(|error| {
            tracing::warn!(error = said(&error), user = user.name, "access not reviewed: request refused");
            let message = format!("Authorization error (user={}, verb={verb}, resource=nodes)", user.name);
            (http::StatusCode::INTERNAL_SERVER_ERROR, message)
        })?;
        let allowed = answer.status.is_some_and(|s| s.allowed);
        self.decisions.put(key, allowed, if allowed { ALLOWED_KEPT } else { DENIED_KEPT });
        Ok(allowed)
    }
}

fn verb(method: &Method) -> &'static str {
    match *method {
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        _ => "get",
    }
}

/// The subresources of `nodes` that open a path, in the order they are tried.
fn subresources(path: &str) -> &'static [&'static str] {
    let under = |prefix: &str| path == prefix || path.strip_prefix(prefix).is_some_and(|r| r.starts_with('/'));
    match path {
        _ if under("/stats") => &["stats"],
        _ if under("/metrics") => &["metrics"],
        _ if under("/logs") => &["log"],
        _ if under("/checkpoint") => &["checkpoint"],
        _ if under("/healthz") => &["healthz", "proxy"],
        _ if under("/configz") => &["configz", "proxy"],
        _ if under("/pods") || under("/runningpods") => &["pods", "proxy"],
        _ => &["proxy"],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_and_methods_map_to_attributes() {
        for (path, want) in [
            ("/stats/summary", "stats"),
            ("/metrics", "metrics"),
            ("/metrics/resource", "metrics"),
            ("/metricsx", "proxy"),
            ("/logs/", "log"),
            ("/containerLogs/a/b/c", "proxy"),
            ("/exec/a/b/c", "proxy"),
        ] {
            assert_eq!(subresources(path), [want], "{path}");
        }
        assert_eq!(subresources("/pods"), ["pods", "proxy"]);
        assert_eq!((verb(&Method::GET), verb(&Method::POST)), ("get", "create"));
    }

    #[tokio::test]
    async fn nobody_enters_without_a_name() {
        let access = Access::new(None, "pi".into());
        let peer = [10, 0, 0, 1].into();
        assert_eq!(access.authenticate(None, None, peer).await.unwrap_err().0, 401);
        assert_eq!(access.authenticate(None, Some("x"), peer).await.unwrap_err().0, 401);
        let user = User { name: "u".into(), uid: String::new(), groups: vec![], extra: BTreeMap::new() };
        assert_eq!(access.authorize(&user, &Method::GET, "/pods").await.unwrap_err().0, 403);
        let master = User { groups: vec!["system:masters".into()], ..user };
        assert!(access.authorize(&master, &Method::GET, "/pods").await.is_ok());
    }
}
