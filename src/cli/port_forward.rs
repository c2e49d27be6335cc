//! `pikelet port-forward`: ports of a pod on loopback, without an API server.

use std::path::Path;

use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};

use super::client::{self, Failure, PodArgs};

/// Arguments of `pikelet port-forward`.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    pod: PodArgs,
    /// Ports: the pod's, or one of this machine and the pod's
    #[arg(required = true, value_name = "[LOCAL:]REMOTE")]
    ports: Vec<String>,
}

fn ports(written: &str) -> Result<(u16, u16), Failure> {
    let (local, remote) = written.split_once(':').unwrap_or((written, written));
    let number = |text: &str| text.parse::<u16>().map_err(|_| format!("{written:?} is not [LOCAL:]REMOTE"));
    let local = if local.is_empty() { 0 } else { number(local)? };
    Ok((local, number(remote)?))
}

/// Forwards until it is interrupted.
pub fn run(args: &Args) -> Result<i32, Failure> {
    client::block_on(async {
        let pod = client::path(&args.pod.find()?);
        let mut tasks = tokio::task::JoinSet::new();
        for written in &args.ports {
            let (local, remote) = ports(written)?;
            let listener = TcpListener::bind(("127.0.0.1", local)).await;
            let listener = listener.map_err(|e| format!("listening on 127.0.0.1:{local}: {e}"))?;
            println!("Forwarding from {} -> {remote}", listener.local_addr()?);
            let (state_dir, path) = (args.pod.state_dir.clone(), format!("/forward/{pod}?port={remote}"));
            tasks.spawn(async move {
                while let Ok((stream, _)) = listener.accept().await {
                    let (state_dir, path) = (state_dir.clone(), path.clone());
                    tokio::spawn(async move {
                        if let Err(error) = forward(stream, &state_dir, &path).await {
                            eprintln!("pikelet: {error}");
                        }
                    });
                }
            });
        }
        while tasks.join_next().await.is_some() {}
        Ok(0)
    })
}

async fn forward(mut stream: TcpStream, state_dir: &Path, path: &str) -> Result<(), Failure> {
    let response = client::get(state_dir, path, Some("tcp")).await?;
    let mut far = TokioIo::new(hyper::upgrade::on(response).await?);
    tokio::io::copy_bidirectional(&mut stream, &mut far).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_may_differ() {
        assert_eq!(ports("80").unwrap(), (80, 80));
        assert_eq!(ports("8080:80").unwrap(), (8080, 80));
        assert_eq!(ports(":80").unwrap(), (0, 80));
        assert!(ports("x").is_err() && ports("1:2:3").is_err() && ports("70000").is_err());
    }
}
