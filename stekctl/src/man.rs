//! Man pages and shell completion, made from the command line's own description.

use std::fs;
use std::path::Path;

use clap::CommandFactory;
use clap_complete::Shell;
use clap_mangen::Man;

use crate::cli::Cli;
use crate::exit_code::{Ended, Failure, Outcome};
use crate::output::print;

/// Prints the script for a shell.
pub fn completions(shell: Shell) -> Ended {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "stekctl", &mut script);
    print(&String::from_utf8_lossy(&script))?;
    Ok(Outcome::Healthy)
}

/// Prints the page of the whole, or writes one page for each command into `dir`.
pub fn man(dir: Option<&Path>) -> Ended {
    let mut whole = Cli::command();
    whole.build();
    let Some(dir) = dir else {
        print(&page(&whole, "stekctl")?)?;
        return Ok(Outcome::Healthy);
    };
    write(dir, "stekctl", &whole)?;
    for command in whole.get_subcommands() {
        write(dir, &format!("stekctl-{}", command.get_name()), command)?;
    }
    Ok(Outcome::Healthy)
}

fn write(dir: &Path, name: &str, command: &clap::Command) -> Result<(), Failure> {
    let path = dir.join(format!("{name}.1"));
    fs::write(&path, page(command, name)?)
        .map_err(|error| Failure::new(format!("{}: cannot be written: {error}", path.display())))
}

fn page(command: &clap::Command, name: &str) -> Result<String, Failure> {
    let source = format!("stek_share {}", env!("CARGO_PKG_VERSION"));
    let man = Man::new(command.clone()).title(name).source(source).manual("stek_share");
    let mut page = Vec::new();
    let made = man.render(&mut page);
    made.map_err(|error| Failure::new(format!("the man page cannot be made: {error}")))?;
    Ok(String::from_utf8_lossy(&page).into_owned())
}
