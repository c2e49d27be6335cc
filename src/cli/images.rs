//! `pikelet images`, `pull` and `rmi`: the agent's images, in the words of crictl.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use http::{Method, Request};
use http_body_util::{BodyExt, Full};
use serde_json::Value;

use super::client::{self, Failure};
use super::progress::{Screen, human};
use crate::image::LayerProgress;
use crate::server::images::PullRequest;

/// Digits of an id or digest in a table.
const SHORT: usize = 13;

/// Arguments of `pikelet images`.
#[derive(clap::Args)]
pub struct ListArgs {
    /// State directory of the agent
    #[arg(long, default_value = "/run/pikelet")]
    state_dir: PathBuf,
    /// How to print
    #[arg(short, long, value_parser = ["table", "wide", "json", "yaml"], default_value = "table")]
    output: String,
    /// Print ids only
    #[arg(short, long)]
    quiet: bool,
    /// Only images with this in one of their names
    name: Option<String>,
}

/// Arguments of `pikelet pull`.
#[derive(clap::Args)]
pub struct PullArgs {
    /// State directory of the agent
    #[arg(long, default_value = "/run/pikelet")]
    state_dir: PathBuf,
    /// Login at the image's registry
    #[arg(long, value_name = "NAME[:PASSWORD]")]
    creds: Option<String>,
    /// Print nothing but errors
    #[arg(short, long)]
    quiet: bool,
    /// What to pull
    image: String,
}

/// Arguments of `pikelet rmi`.
#[derive(clap::Args)]
pub struct RemoveArgs {
    /// State directory of the agent
    #[arg(long, default_value = "/run/pikelet")]
    state_dir: PathBuf,
    /// References, ids or the beginnings of ids
    #[arg(required = true)]
    images: Vec<String>,
}

async fn all(state_dir: &Path) -> Result<Vec<Value>, Failure> {
    let body = client::get(state_dir, "/images", None).await?.into_body().collect().await?.to_bytes();
    let mut answer: Value = serde_json::from_slice(&body)?;
    Ok(serde_json::from_value(answer["images"].take())?)
}

fn texts<'a>(image: &'a Value, key: &str) -> Vec<&'a str> {
    image[key].as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}

fn id(image: &Value) -> &str {
    image["id"].as_str().unwrap_or_default().trim_start_matches("sha256:")
}

/// Prints the images.
pub fn list(args: &ListArgs) -> Result<i32, Failure> {
    let images = client::block_on(all(&args.state_dir))?;
    let meant = |i: &Value| match &args.name {
        Some(name) => texts(i, "repoTags").iter().chain(&texts(i, "repoDigests")).any(|t| t.contains(name.as_str())),
        None => true,
    };
    let images: Vec<Value> = images.into_iter().filter(meant).collect();
    if args.quiet {
        for image in &images {
            println!("{}", image["id"].as_str().unwrap_or_default());
        }
        return Ok(0);
    }
    match args.output.as_str() {
        "json" => println!("{}", serde_json::to_string_pretty(&serde_json::json!({"images": images}))?),
        "yaml" => print!("{}", serde_saphyr::to_string(&serde_json::json!({"images": images}))?),
        output => table(&images, output == "wide"),
    }
    Ok(0)
}

fn table(images: &[Value], wide: bool) {
    let digits = if wide { usize::MAX } else { SHORT };
    let mut rows = vec![["IMAGE", "TAG", "DIGEST", "IMAGE ID", "SIZE"].map(str::to_owned)];
    for image in images {
        let digests = texts(image, "repoDigests");
        let digest_of = |name: &str| {
            let found = digests.iter().filter_map(|d| d.split_once("@sha256:")).find(|(n, _)| *n == name);
            found.map_or("<none>", |(_, d)| d).chars().take(digits).collect::<String>()
        };
        let mut names: Vec<(&str, &str)> =
            texts(image, "repoTags").into_iter().filter_map(|t| t.rsplit_once(':')).collect();
        if names.is_empty() {
            names.extend(digests.iter().filter_map(|d| Some((d.split_once('@')?.0, "<none>"))));
        }
        let size = image["size"].as_str().and_then(|s| s.parse().ok()).map(human).unwrap_or_default();
        for (name, tag) in names {
            let id = id(image).chars().take(digits).collect();
            rows.push([name.to_owned(), tag.to_owned(), digest_of(name), id, size.clone()]);
        }
    }
    let columns: &[usize] = if wide { &[0, 1, 2, 3, 4] } else { &[0, 1, 3, 4] };
    let width = |c: usize| rows.iter().map(|r| r[c].len()).max().unwrap_or_default();
    let widths: Vec<usize> = columns.iter().map(|c| width(*c)).collect();
    for row in &rows {
        let cells: Vec<String> = columns.iter().zip(&widths).map(|(c, w)| format!("{:<w$}", row[*c])).collect();
        println!("{}", cells.join("   ").trim_end());
    }
}

/// Removes images; goes on after one that cannot be.
pub fn remove(args: &RemoveArgs) -> Result<i32, Failure> {
    client::block_on(async {
        let mut code = 0;
        for wanted in &args.images {
            let images = all(&args.state_dir).await?;
            let hex = wanted.trim_start_matches("sha256:");
            let beginning = hex.len() >= 3 && hex.bytes().all(|b| b.is_ascii_hexdigit());
            let found: Vec<&Value> = images.iter().filter(|i| beginning && id(i).starts_with(hex)).collect();
            let name = match found.as_slice() {
                [one] => one["id"].as_str().unwrap_or_default().to_owned(),
                [] => wanted.clone(),
                _ => {
                    eprintln!("pikelet: {wanted} is the beginning of {} ids", found.len());
                    code = 1;
                    continue;
                }
            };
            let query = form_urlencoded::Serializer::new(String::new()).append_pair("image", &name).finish();
            let request = Request::builder().method(Method::DELETE).uri(format!("/images?{query}"));
            match client::send(&args.state_dir, request.body(Full::<Bytes>::default())?).await {
                Ok(_) => println!("Deleted: {wanted}"),
                Err(error) => {
                    eprintln!("pikelet: {error}");
                    code = 1;
                }
            }
        }
        Ok(code)
    })
}

/// A line for each layer.
fn progress(layers: &[LayerProgress]) -> Vec<String> {
    let line = |layer: &LayerProgress| {
        let name: String = layer.digest.trim_start_matches("sha256:").chars().take(12).collect();
        let state = match (layer.done, layer.received) {
            (true, _) => "done".to_owned(),
            (_, 0) => "waiting".to_owned(),
            (_, n) if n >= layer.total => "unpacking".to_owned(),
            (_, n) => format!("{} of {}", human(n), human(layer.total)),
        };
        format!("{name}  {state}")
    };
    layers.iter().map(line).collect()
}

/// Pulls an image, with a line for each layer on a terminal.
pub fn pull(args: &PullArgs) -> Result<i32, Failure> {
    let request = PullRequest { image: args.image.clone(), creds: args.creds.clone() };
    let drawn = std::io::stderr().is_terminal() && !args.quiet;
    client::block_on(async {
        let request = Request::builder()
            .method(Method::POST)
            .uri("/images/pull")
            .header(http::header::CONTENT_TYPE, "application/json")
            .body(Full::<Bytes>::from(serde_json::to_vec(&request)?))?;
        let mut body = client::send(&args.state_dir, request).await?.into_body();
        let (mut text, mut screen) = (Vec::new(), Screen::default());
        while let Some(frame) = body.frame().await {
            text.extend(frame?.into_data().unwrap_or_default());
            while let Some(end) = text.iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = text.drain(..=end).collect();
                let mut line: Value = serde_json::from_slice(&line)?;
                if let Some(error) = line["error"].as_str() {
                    return Err(error.into());
                }
                if let Some(id) = line["image"]["id"].as_str() {
                    if !args.quiet {
                        println!("Image is up to date for {id}");
                    }
                    return Ok(0);
                }
                let layers: Vec<LayerProgress> = serde_json::from_value(line["layers"].take())?;
                // none are known before the manifest is here, and none any more at the end
                if drawn && !layers.is_empty() {
                    screen.draw(&progress(&layers))?;
                }
            }
        }
        Err("the agent ended during the pull".into())
    })
}
