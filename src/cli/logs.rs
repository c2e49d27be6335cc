//! `pikelet logs`: kubectl's, without an API server.

use std::io::Write;

use http_body_util::BodyExt;

use super::client::{self, Failure, PodArgs};

/// Arguments of `pikelet logs`.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    pod: PodArgs,
    /// Container [default: the pod's first]
    #[arg(short, long)]
    container: Option<String>,
    /// Go on with new lines
    #[arg(short, long)]
    follow: bool,
    /// Of the run before this one
    #[arg(short, long)]
    previous: bool,
    /// Only the last lines
    #[arg(long, value_name = "LINES")]
    tail: Option<u64>,
    /// Only the last seconds
    #[arg(long, value_name = "SECONDS")]
    since: Option<u64>,
    /// Each line with its time
    #[arg(long)]
    timestamps: bool,
}

/// Prints the log.
pub fn run(args: &Args) -> Result<i32, Failure> {
    client::block_on(async {
        let pod = args.pod.find()?;
        let container = client::container(&pod, args.container.as_deref())?;
        let mut query = form_urlencoded::Serializer::new(String::new());
        for (name, on) in [("follow", args.follow), ("previous", args.previous), ("timestamps", args.timestamps)] {
            if on {
                query.append_pair(name, "true");
            }
        }
        for (name, value) in [("tailLines", args.tail), ("sinceSeconds", args.since)] {
            if let Some(value) = value {
                query.append_pair(name, &value.to_string());
            }
        }
        let path = format!("/containerLogs/{}/{container}?{}", client::path(&pod), query.finish());
        let mut body = client::get(&args.pod.state_dir, &path, None).await?.into_body();
        let mut out = std::io::stdout();
        while let Some(frame) = body.frame().await {
            if let Ok(data) = frame?.into_data() {
                out.write_all(&data)?;
                out.flush()?;
            }
        }
        Ok(0)
    })
}
