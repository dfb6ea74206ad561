//! `stekctl`, the operator's command for a fleet of Traffic Servers with the plugin stek_share.
//!
//! It asks and orders by way of [`stek_share::client`] and checks configurations by
//! [`stek_share::load`], so that it says what the plugin would say. Invariants: it changes
//! nothing but by `rotate`, `revoke` and `reload`, and files by `init` and the commands of [`change`]; it prints
//! no key; it ends within the time limits that it was given.
//!
//! | room | what it does |
//! |---|---|
//! | [`cli`] | words and their meaning; help, man pages and completion come from it |
//! | [`locate`] | finds Traffic Server's directories and the plugin's configuration |
//! | [`check`], [`init`], [`metrics`], [`status`], [`wait`], [`doctor`], [`effect`] | those commands |
//! | [`change`] | `add`, `remove`, `replace`, `renew` |
//! | [`next_steps`] | what they print |
//! | [`admin_command`], [`reload`] | `rotate` and `revoke`; `reload` |
//! | [`who`] | who types, for the log |
//! | [`man`] | `man` and `completions` |
//! | [`help`] | breaks the lines of help texts |
//! | [`fleet`], [`own`] | asks all servers; where this machine's own one is |
//! | [`absence`], [`health`], [`outside`] | who does not answer; checks the answers; whether this server is in the group's list at all |
//! | [`json`] | the form of `--json` |
//! | [`fleet_dir`], [`journal`] | the directory that `init` makes; its changes, step by step |
//! | [`pki`] | certificates in it |
//! | [`output`], [`exit_code`] | colour and tables; exit codes |

mod absence;
mod admin_command;
mod change;
mod check;
mod cli;
mod doctor;
mod effect;
mod exit_code;
mod fleet;
mod fleet_dir;
mod health;
mod help;
mod init;
mod journal;
mod json;
mod locate;
mod man;
mod metrics;
mod next_steps;
mod output;
mod outside;
mod own;
mod pki;
mod recover;
mod reload;
mod rights;
mod status;
mod users;
mod wait;
mod who;

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;

use cli::{Cli, Command};
use exit_code::{Ended, Failure, FAILED};
use output::{complain, styled, BAD};

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are no errors, and go to standard output.
            let failed = error.use_stderr();
            let text = help::wrap(&error.render().ansi().to_string(), help::width());
            let _ = if failed {
                anstream::stderr().write_all(text.as_bytes())
            } else {
                anstream::stdout().write_all(text.as_bytes())
            };
            return ExitCode::from(if failed { FAILED } else { 0 });
        }
    };
    match run(&cli) {
        Ok(outcome) => outcome.into(),
        Err(Failure(lines)) => {
            lines.iter().for_each(|line| complain(&format!("{} {line}", styled("error:", BAD))));
            ExitCode::from(FAILED)
        }
    }
}

fn run(cli: &Cli) -> Ended {
    match &cli.command {
        Command::Check(args) => check::run(args, &cli.place),
        Command::Init(args) => init::run(args),
        Command::Effect(args) => effect::run(args, &cli.place),
        Command::Metrics(args) => metrics::run(args, cli.place.limit()),
        Command::Add(args) => change::add(args, &cli.place),
        Command::Remove(args) => change::remove(args, &cli.place),
        Command::Replace(args) => change::replace(args, &cli.place),
        Command::Renew(args) => change::renew(args),
        Command::Completions { shell } => man::completions(*shell),
        Command::Man { dir } => man::man(dir.as_deref()),
        Command::Status(args) => status::run(args, &cli.place),
        Command::Wait(args) => wait::run(args, &cli.place),
        Command::Reload(args) => reload::run(args, &cli.place),
        Command::Rotate => admin_command::rotate(&cli.place),
        Command::Revoke(args) => admin_command::revoke(args, &cli.place),
        Command::Recover(args) => recover::run(args, &cli.place),
        Command::Doctor(args) => doctor::run(args, &cli.place),
    }
}
