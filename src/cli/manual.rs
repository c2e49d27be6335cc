//! `pikelet completion` and `pikelet man`: made from the command line's own definitions.

use std::path::PathBuf;

use super::Outcome;
use super::table::print;

/// Arguments of `pikelet completion`.
#[derive(clap::Args)]
pub struct CompletionArgs {
    /// Shell the completions are for
    #[arg(value_parser = ["bash", "zsh", "fish"])]
    shell: String,
}

/// Arguments of `pikelet man`.
#[derive(clap::Args)]
pub struct ManArgs {
    /// Write the pages of all commands to this folder instead
    #[arg(long, value_name = "DIR", conflicts_with = "name")]
    dir: Option<PathBuf>,
    /// Page of this command [default: of pikelet itself]
    #[arg(value_name = "COMMAND")]
    name: Option<String>,
}

/// Prints the completions.
pub fn completion(args: &CompletionArgs, mut cli: clap::Command) -> Outcome {
    let shell: clap_complete::Shell = args.shell.parse()?;
    // kept first: the generator ends the program when its reader has gone
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut cli, "pikelet", &mut text);
    Ok(print(&String::from_utf8(text)?)?)
}

/// Prints a page, or writes all of them.
pub fn man(args: &ManArgs, cli: clap::Command) -> Outcome {
    let mut cli = cli.disable_help_subcommand(true);
    if let Some(dir) = &args.dir {
        let written = crate::files::dir_kept(dir, 0o755).and_then(|()| clap_mangen::generate_to(cli, dir));
        return Ok(written.map_err(|e| format!("writing pages to {}: {e}", dir.display()))?);
    }
    cli.build();
    let command = match &args.name {
        None => cli,
        Some(name) => {
            let found = cli.find_subcommand(name);
            found.ok_or_else(|| format!("there is no command {name}: see pikelet --help"))?.clone()
        }
    };
    let mut text = Vec::new();
    clap_mangen::Man::new(command).render(&mut text)?;
    Ok(print(&String::from_utf8(text)?)?)
}
