//! `pikelet stop` and `pikelet rm`: containers stopped, a sandbox made anew.

use super::Outcome;
use super::client::{self, PodArgs};
use crate::server::local;

/// What both have.
#[derive(clap::Args)]
struct OrderArgs {
    #[command(flatten)]
    pod: PodArgs,
    /// Seconds between SIGTERM and SIGKILL, 0 for SIGKILL at once [default: the pod's own]
    #[arg(long, alias = "timeout", visible_short_alias = 't', value_name = "SECONDS")]
    grace_period: Option<u64>,
}

/// Arguments of `pikelet stop`.
#[derive(clap::Args)]
pub struct StopArgs {
    #[command(flatten)]
    order: OrderArgs,
    /// Only this container [default: all that run]
    #[arg(short, long)]
    container: Option<String>,
}

/// Arguments of `pikelet rm`.
#[derive(clap::Args)]
pub struct RemoveArgs {
    #[command(flatten)]
    order: OrderArgs,
}

impl OrderArgs {
    fn give(&self, verb: &str, container: Option<&str>) -> Outcome {
        let pod = self.pod.find()?;
        let container = container.map(|name| client::container(&pod, Some(name))).transpose()?;
        let mut query = form_urlencoded::Serializer::new(String::new());
        query.extend_pairs(container.map(|name| ("container", name)));
        query.extend_pairs(self.grace_period.map(|seconds| ("gracePeriod", seconds.to_string())));
        let path = format!("/{verb}/{}?{}", client::path(&pod), query.finish());
        local::ask(&self.pod.state_dir, "POST", &path).map(drop)
    }
}

/// Waits until the containers have ended.
pub fn stop(args: &StopArgs) -> Outcome {
    args.order.give("stop", args.container.as_deref())
}

/// Waits until the sandbox is gone.
pub fn remove(args: &RemoveArgs) -> Outcome {
    args.order.give("rm", None)
}
