//! ConfigMaps, Secrets and service account tokens that pods of this node refer to.

use futures::FutureExt;
use futures::future::BoxFuture;
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{ConfigMap, Secret, ServiceAccount};
use kube::api::PostParams;
use kube::{Api, Client};

use crate::volume::ObjectSource;

const STANDALONE: &str = "no API server is configured: standalone pods cannot use ConfigMaps, Secrets or tokens";

/// Reads objects from the API server; without one every read says so.
#[derive(Clone)]
pub struct Objects {
    client: Option<Client>,
}

impl Objects {
    /// A reader.
    pub fn new(client: Option<Client>) -> Self {
        Self { client }
    }

    fn client(&self) -> Result<Client, String> {
        self.client.clone().ok_or_else(|| STANDALONE.to_owned())
    }
}

impl ObjectSource for Objects {
    fn config_map<'a>(&'a self, namespace: &'a str, name: &'a str) -> BoxFuture<'a, Result<Option<ConfigMap>, String>> {
        async move {
            let api: Api<ConfigMap> = Api::namespaced(self.client()?, namespace);
            api.get_opt(name).await.map_err(|e| format!("reading configmap {name:?}: {e}"))
        }
        .boxed()
    }

    fn secret<'a>(&'a self, namespace: &'a str, name: &'a str) -> BoxFuture<'a, Result<Option<Secret>, String>> {
        async move {
            let api: Api<Secret> = Api::namespaced(self.client()?, namespace);
            api.get_opt(name).await.map_err(|e| format!("reading secret {name:?}: {e}"))
        }
        .boxed()
    }

    fn token<'a>(
        &'a self,
        namespace: &'a str,
        account: &'a str,
        pod_name: &'a str,
        pod_uid: &'a str,
        audience: Option<String>,
        expiration_seconds: i64,
    ) -> BoxFuture<'a, Result<(String, i64), String>> {
        async move {
            let api: Api<ServiceAccount> = Api::namespaced(self.client()?, namespace);
            let bound = BoundObjectReference {
                api_version: Some("v1".to_owned()),
                kind: Some("Pod".to_owned()),
                name: Some(pod_name.to_owned()),
                uid: Some(pod_uid.to_owned()),
            };
            let request = TokenRequest {
                spec: Some(TokenRequestSpec {
                    audiences: Some(audience.into_iter().collect()),
                    expiration_seconds: Some(expiration_seconds),
                    bound_object_ref: Some(bound),
                }),
                ..TokenRequest::default()
            };
            let what = |e| format!("requesting a token of service account {namespace}/{account}: {e}");
            let answer = api.create_token_request(account, &PostParams::default(), &request).await.map_err(what)?;
            let status = answer
                .status
                .ok_or_else(|| format!("no token of service account {namespace}/{account} in the answer"))?;
            let expires = status.expiration_timestamp.map_or(0, |t| t.0.as_second());
            Ok((status.token.unwrap_or_default(), expires))
        }
        .boxed()
    }
}
