//! `pikelet image`: archives of images in and out; and the other commands of images under their long names.

use std::fs::File;
use std::io::{IsTerminal, Read, Write};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use http::{Method, Request};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Frame;
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;

use super::client::{self, Failure};
use super::images;
use crate::files;
use crate::image::{Exported, Imported};
use crate::server::images::EXPORTED;

/// Bytes of an archive read at a time, and ...
const PIECE: usize = 128 << 10;
/// ... how many may wait for the agent.
const PIECES: usize = 4;

/// Subcommands of `pikelet image`.
#[derive(clap::Subcommand)]
pub enum Command {
    /// Import the images of an archive: OCI layout or docker, tar, also as gzip or zstd
    ///
    /// Layers are unpacked as they are read; there is no copy of the archive. Those of other platforms are removed again
    /// at the end.
    Import(ImportArgs),
    /// Export images as one OCI archive
    ///
    /// With keepBlobs the layers are those that were pulled. Without it they are made again from the unpacked ones:
    /// content, owners, modes and whiteouts are the same, digests and image id as a rule are not, which is said.
    Export(ExportArgs),
    /// List the images of this node
    #[command(alias = "ls")]
    List(images::ListArgs),
    /// Pull an image
    Pull(images::PullArgs),
    /// Remove images
    Rm(images::RemoveArgs),
}

/// Arguments of `pikelet image import`.
#[derive(clap::Args)]
pub struct ImportArgs {
    /// State directory of the agent
    #[arg(long, default_value = "/run/pikelet")]
    state_dir: PathBuf,
    /// Name of the archive's only image; or, without a tag, of those that have only a tag
    #[arg(long, value_name = "NAME[:TAG]")]
    name: Option<String>,
    /// The archive; - for standard input
    file: PathBuf,
}

/// Arguments of `pikelet image export`.
#[derive(clap::Args)]
pub struct ExportArgs {
    /// State directory of the agent
    #[arg(long, default_value = "/run/pikelet")]
    state_dir: PathBuf,
    /// The archive; - for standard output
    file: PathBuf,
    /// References or ids
    #[arg(required = true)]
    images: Vec<String>,
}

/// Runs a subcommand.
pub fn run(command: &Command) -> Result<i32, Failure> {
    match command {
        Command::Import(args) => import(args),
        Command::Export(args) => export(args),
        Command::List(args) => images::list(args),
        Command::Pull(args) => images::pull(args),
        Command::Rm(args) => images::remove(args),
    }
}

type Sent = Result<Frame<Bytes>, std::io::Error>;

/// Reads where it may block, piece by piece, until the agent no longer wants more.
fn send(mut from: impl Read, tx: &mpsc::Sender<Sent>) {
    loop {
        let mut piece = vec![0; PIECE];
        let sent = match from.read(&mut piece) {
            Ok(0) => return,
            Ok(n) => {
                piece.truncate(n);
                tx.blocking_send(Ok(Frame::data(Bytes::from(piece))))
            }
            Err(error) => tx.blocking_send(Err(error)),
        };
        if sent.is_err() {
            return;
        }
    }
}

fn import(args: &ImportArgs) -> Result<i32, Failure> {
    let from: Box<dyn Read + Send> = if args.file == Path::new("-") {
        if std::io::stdin().is_terminal() {
            return Err("standard input is a terminal: an archive is wanted".into());
        }
        Box::new(std::io::stdin())
    } else {
        Box::new(File::open(&args.file).map_err(|e| format!("{}: {e}", args.file.display()))?)
    };
    let (tx, rx) = mpsc::channel(PIECES);
    std::thread::spawn(move || send(from, &tx));
    let mut query = form_urlencoded::Serializer::new(String::new());
    if let Some(name) = &args.name {
        query.append_pair("name", name);
    }
    let request = Request::builder().method(Method::POST).uri(format!("/images/import?{}", query.finish()));
    let imported: Vec<Imported> = client::block_on(async {
        let request = request.body(StreamBody::new(ReceiverStream::new(rx)))?;
        let answer = client::send(&args.state_dir, request).await?.into_body().collect().await?.to_bytes();
        Ok(serde_json::from_slice(&answer)?)
    })?;
    let mut code = 0;
    for image in imported {
        match image.result {
            Ok(id) => println!("{} {id}", image.name),
            Err(error) => {
                eprintln!("pikelet: image {}: {error}", image.name);
                code = 1;
            }
        }
    }
    Ok(code)
}

fn export(args: &ExportArgs) -> Result<i32, Failure> {
    let to_file = args.file != Path::new("-");
    if !to_file && std::io::stdout().is_terminal() {
        return Err("standard output is a terminal: name a file, or redirect it".into());
    }
    let mut query = form_urlencoded::Serializer::new(String::new());
    query.extend_pairs(args.images.iter().map(|image| ("image", image)));
    let request = Request::builder().uri(format!("/images/export?{}", query.finish()));
    client::block_on(async {
        let answer = client::send(&args.state_dir, request.body(Full::<Bytes>::default())?).await?;
        let exported = answer.headers().get(EXPORTED).ok_or("the agent does not say what it exports")?;
        let exported: Vec<Exported> = serde_json::from_slice(exported.as_bytes())?;
        let mut body = answer.into_body().into_data_stream();
        let failed = |e: std::io::Error| format!("writing {}: {e}", args.file.display());
        let mut out: Box<dyn Write> = if to_file {
            Box::new(files::create(&args.file, 0o644).map_err(failed)?)
        } else {
            Box::new(std::io::stdout())
        };
        let mut copy = async || -> Result<(), Failure> {
            while let Some(piece) = body.next().await {
                let broken = |e| format!("the agent broke the export off, its log says why ({e})");
                out.write_all(&piece.map_err(broken)?).map_err(failed)?;
            }
            Ok(out.flush().map_err(failed)?)
        };
        if let Err(error) = copy().await {
            // half an archive is of no use
            if to_file {
                let _ = std::fs::remove_file(&args.file);
            }
            return Err(error);
        }
        for image in exported {
            let remade = if image.id == image.stored_id { "" } else { " (layers made again: another id)" };
            eprintln!("{} {}{remade}", image.name, image.id);
        }
        Ok(0)
    })
}
