//! The words of the command line and what they mean. Help texts, man pages and shell completion
//! are all made from this page.

use std::path::PathBuf;
use std::time::Duration;

use clap::builder::styling::{AnsiColor, Styles};
use clap::{Args, Parser, Subcommand};

/// The longest that one question to one server may take, in seconds: who waits longer than this
/// has no use for the answer.
const MAX_TIMEOUT_S: u64 = 600;

/// How long one question may take unless the operator says otherwise.
pub const ANSWER_LIMIT: Duration = Duration::from_secs(3);

/// The colours of help texts.
const STYLES: Styles = Styles::styled()
    .header(AnsiColor::Green.on_default().bold())
    .usage(AnsiColor::Green.on_default().bold())
    .literal(AnsiColor::Cyan.on_default().bold())
    .placeholder(AnsiColor::Cyan.on_default());

/// What follows the options in every help text.
const EXIT_CODES: &str = "\
Exit code: 0 all is well; 1 it works, but something needs attention; 2 it does not work; 3 the \
command could not do its work, for example because of a wrong option or an unusable configuration. \
These are the codes that monitoring plugins use.";

/// Look at a fleet of Traffic Servers that share their TLS session ticket key, and steer it
///
/// stekctl runs on a server of the fleet and speaks to the servers of its list as that server does: over
/// mutual TLS, with the certificate that the server's own server_conf.yaml names. So it has to be run
/// by a user who may read that file and the server's private key, as a rule by root. It is never a
/// member of the group: it holds no key, has no vote, and is not counted.
///
/// Colour is used on a terminal; NO_COLOR=1 switches it off, CLICOLOR_FORCE=1 on.
#[derive(Debug, Parser)]
#[command(name = "stekctl", version, styles = STYLES, after_help = EXIT_CODES)]
pub struct Cli {
    /// Where this server's configuration is.
    #[command(flatten)]
    pub place: Place,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Where things are on this server.
#[derive(Clone, Debug, Args)]
pub struct Place {
    /// This server's server_conf.yaml [default: the one that plugin.config names]
    #[arg(short, long, global = true, value_name = "FILE", help_heading = "Global options")]
    pub config: Option<PathBuf>,
    /// Traffic Server's configuration directory [default: the first of /etc/trafficserver,
    /// /opt/trafficserver/etc/trafficserver, /opt/trafficserver/etc,
    /// /usr/local/etc/trafficserver that exists]
    #[arg(long, global = true, value_name = "DIR", help_heading = "Global options")]
    pub ats_config: Option<PathBuf>,
    /// How long one server may take to answer: 2.5, 500ms, 2min [default: 3 s]; for wait, how long to
    /// wait in all [default: 60 s]
    #[arg(
        long, global = true, value_name = "SECONDS", value_parser = seconds,
        overrides_with = "timeout", help_heading = "Global options"
    )]
    pub timeout: Option<Duration>,
}

impl Place {
    /// How long one server may take to answer.
    pub fn limit(&self) -> Duration {
        self.timeout.unwrap_or(ANSWER_LIMIT)
    }
}

/// The commands.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Ask every server of the list how it is, and say whether the fleet is well
    ///
    /// Prints one row for each server, and below the table one line for each reason why the fleet
    /// is not well. Exit code 0 (healthy): every server answers, all are in one group and use one
    /// key. 1 (degraded): clients resume on all servers that answer and keys are replaced on time,
    /// but something needs attention, for example a server that cannot be reached. 2 (broken):
    /// servers use different keys, or the group makes no new key, because it has no leader or no
    /// majority.
    Status(StatusArgs),
    /// Wait until this server is back in the group, for upgrades and rolling restarts
    ///
    /// Asks the plugin of this machine again and again. Exit code 0: it encrypts with the group's key
    /// and belongs to a majority, so that the next server may be restarted; whatever else there is to
    /// say of the fleet does not count. 2: not so within --timeout.
    Wait(WaitArgs),
    /// Have the group make a new key now
    ///
    /// The oldest key of the set goes, sooner than by schedule, and the tickets that it made with
    /// it. The next scheduled rotation is a whole key_update_interval away. The order
    /// goes to one server that belongs to a majority, this server if it does, and from there to the
    /// leader.
    Rotate,
    /// Have this server read its files again, or all servers
    ///
    /// Takes over changed options, certificates and server list without a restart, as `traffic_ctl plugin
    /// msg stek_share reload` does, without traffic_manager, and says what came of it. A list counts once
    /// more than half of the servers have it in their files and one of them was told to reload. Exit code
    /// 0: done. 2: a server changed nothing; the line has the reason.
    Reload(ReloadArgs),
    /// Have the group make a new key now, and drop every older one
    ///
    /// For a key that may have leaked: no older ticket resumes any more, and every client has one
    /// full handshake. On a terminal it asks before it does that; elsewhere it needs --yes.
    Revoke(RevokeArgs),
    /// Go on with the servers that are left, after a majority is gone for good
    ///
    /// Without a majority of the voters no new key is made. Where the others will not come back, those
    /// who are left go on with their keys and without a restart. Needs the server_id of each of
    /// them: one that answers and is not named, or is named and does not answer, is told, and nothing is
    /// done. Refused while a server hears a leader with a majority. A lost server that comes back joins
    /// by itself. On a terminal it asks before it does that; elsewhere it needs --yes.
    Recover(RecoverArgs),
    /// Say everything that the plugin would say about a configuration
    ///
    /// Reads FILE, the server list and the certificates that it names, with the plugin's own code,
    /// and prints the plugin's own lines. Nothing is asked over the network and nothing is changed.
    /// Exit code 0: it can be used. 1: it can be used, but there are warnings. 2: it cannot. 3: who asks
    /// may not read it.
    Check(CheckArgs),
    /// Find what keeps sessions from being resumed although the key is shared
    ///
    /// Looks at this server's configuration, at Traffic Server's files, at the machine (swap, core
    /// dumps), and asks every server of the list. With --tls it really takes a ticket from each
    /// address and offers it to every other, in TLS 1.2 and TLS 1.3; sites that demand a
    /// certificate of their clients need --cert and --key. Also says what lets clients do more
    /// under a shared key than is meant. Prints one line for each
    /// finding: what, where, why it hurts, and the remedy; if there is none, nothing at all, but on a
    /// terminal what was looked at.
    /// Exit code 0: nothing was found. 1: there are findings, but sessions resume. 2: some
    /// sessions do not resume, or soon will not.
    Doctor(DoctorArgs),
    /// Say what the shared key is worth: how many handshakes resumed a session
    ///
    /// Asks every server of the list what its Traffic Server has counted since it started, or with --over
    /// for so long from now, and adds it up: handshakes of clients, tickets that a key opened, tickets
    /// whose key is gone, sessions resumed by their id. A ticket that was opened may belong to a session
    /// that is then refused, so what is resumed is told as a most; doctor --tls tries it. Exit code 0:
    /// all servers told. 1: some did not, or open tickets and resume nothing. 2: none told.
    Effect(EffectArgs),
    /// Write certificates and configurations for a new fleet
    ///
    /// Makes the directory DIR with an authority and, for each ADDRESS, a directory server-N that is
    /// ready to be copied to that server: server_conf.yaml, server_list.yaml, the certificates, and
    /// the line for plugin.config. Nothing that is there is ever overwritten. Private keys can be
    /// read by nobody but their owner. An address may have a port, as in
    /// 10.0.0.1:10002; an IPv6 address then stands in brackets.
    Init(InitArgs),
    /// Take new servers into a fleet that init made
    ///
    /// Changes the directory DIR: a number, a certificate and a directory for each new server, whose
    /// configuration is that of the others, and the server list of all. Then prints what is to be done
    /// on the servers, command by command. Asks the servers first, and refuses what would leave them
    /// without a majority; run it where their ports can be reached, or give --offline.
    Add(AddArgs),
    /// Take servers out of a fleet that init made
    ///
    /// Changes the server list of all in the directory DIR, puts the directory of each server that goes
    /// into DIR/removed, without its private key, and prints what is to be done. No later server gets its
    /// number. Refuses what would leave the others without a majority.
    Remove(RemoveArgs),
    /// Put a new server in the place of one that is broken, lost or in the wrong hands
    ///
    /// As add and remove in one change of the server list. Without ADDRESS the new server is where the
    /// old one was. It has a number and a certificate of its own, so that the old one's, wherever it is,
    /// lets nobody in any more.
    Replace(ReplaceArgs),
    /// Make new certificates for servers of a fleet that init made
    ///
    /// For all servers, or for those whose numbers are given; their names stay. With --authority it goes
    /// to a new authority, in three steps of one command each: all trust both, certificates come from
    /// the new one, all trust the new one alone. No server has to be restarted.
    Renew(RenewArgs),
    /// Print the plugin's metrics in Prometheus's text format
    ///
    /// Reads what Traffic Server's plugin stats_over_http.so answers, from a URL or from standard
    /// input, and prints the metrics plugin.stek_share.* of it.
    Metrics(MetricsArgs),
    /// Print a script that completes stekctl's words in a shell
    ///
    /// For bash: stekctl completions bash > /usr/share/bash-completion/completions/stekctl
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Print stekctl's man page, or write those of all commands into a directory
    Man {
        /// Write stekctl.1, stekctl-status.1 and so on into this directory, which must exist
        #[arg(value_name = "DIR")]
        dir: Option<PathBuf>,
    },
}

/// See [`Command::Wait`].
#[derive(Clone, Debug, Args)]
pub struct WaitArgs {
    /// Print what the server says of itself as JSON
    #[arg(long)]
    pub json: bool,
}

/// See [`Command::Status`].
#[derive(Clone, Debug, Args)]
pub struct StatusArgs {
    /// Print JSON instead of a table; docs/health.md has its fields
    #[arg(long)]
    pub json: bool,
    /// Ask the plugin of this machine alone. Exit code 0: it encrypts with the group's key, also while
    /// there is no majority; 2: it does not, or does not answer. For readiness probes and balancers
    #[arg(long = "self", conflicts_with_all = ["watch", "wide"])]
    pub own: bool,
    /// All columns, however wide the table gets
    #[arg(long, conflicts_with = "json")]
    pub wide: bool,
    /// Ask again every SECONDS (2 if none are given) until interrupted; with --json one document
    /// on each line
    #[arg(
        long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "2",
        value_parser = seconds
    )]
    pub watch: Option<Duration>,
}

/// See [`Command::Effect`].
#[derive(Clone, Debug, Args)]
pub struct EffectArgs {
    /// Print JSON instead of a table; docs/health.md has its fields
    #[arg(long)]
    pub json: bool,
    /// Count for so long, and not since Traffic Server started: 30, 500ms, 5min
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub over: Option<Duration>,
}

/// See [`Command::Reload`].
#[derive(Clone, Debug, Args)]
pub struct ReloadArgs {
    /// Each server of the list, one after another, this one first
    #[arg(long)]
    pub all: bool,
}

/// See [`Command::Revoke`].
#[derive(Clone, Debug, Args)]
pub struct RevokeArgs {
    /// Do not ask
    #[arg(short, long)]
    pub yes: bool,
}

/// See [`Command::Recover`].
#[derive(Clone, Debug, Args)]
pub struct RecoverArgs {
    /// Every server that is left, by server_id: 1,4
    #[arg(
        long, value_name = "ID", required = true, value_delimiter = ',', num_args = 1..,
        value_parser = number
    )]
    pub survivors: Vec<u32>,
    /// Do not ask
    #[arg(short, long)]
    pub yes: bool,
}

/// See [`Command::Check`].
#[derive(Clone, Debug, Args)]
pub struct CheckArgs {
    /// A server_conf.yaml [default: the one that plugin.config names]
    #[arg(value_name = "FILE")]
    pub file: Option<PathBuf>,
}

/// See [`Command::Doctor`].
#[derive(Clone, Debug, Args)]
pub struct DoctorArgs {
    /// Addresses where the servers serve TLS to clients, perhaps with a port [default: 443]
    #[arg(long, value_name = "ADDRESS", num_args = 1..)]
    pub tls: Vec<String>,
    /// The server name that clients send, for the addresses of --tls [default: none]
    #[arg(long, value_name = "NAME", requires = "tls")]
    pub sni: Option<String>,
    /// A client certificate for the addresses of --tls, in PEM, where sites demand one
    #[arg(long, value_name = "FILE", requires = "tls", requires = "key")]
    pub cert: Option<PathBuf>,
    /// The private key of --cert, in PEM
    #[arg(long, value_name = "FILE", requires = "cert")]
    pub key: Option<PathBuf>,
    /// Also print who resumes whose tickets, which is said otherwise only where it goes wrong
    #[arg(long, requires = "tls")]
    pub matrix: bool,
    /// Do not ask the servers of the list
    #[arg(long)]
    pub offline: bool,
    /// Where the kernel's files of the machine are that Traffic Server runs on
    #[arg(long, value_name = "DIR", default_value = "/proc")]
    pub proc: PathBuf,
}

/// See [`Command::Init`].
#[derive(Clone, Debug, Args)]
pub struct InitArgs {
    /// The directory to make; it must not exist, or be empty
    #[arg(value_name = "DIR")]
    pub dir: PathBuf,
    /// Where the servers listen for each other: IPv4, IPv6 or host name, perhaps with a port
    #[arg(value_name = "ADDRESS", required = true)]
    pub addresses: Vec<String>,
    /// The port of addresses without one
    #[arg(long, value_name = "PORT", default_value_t = 10001)]
    #[arg(value_parser = clap::value_parser!(u16).range(1..))]
    pub port: u16,
    /// How often the group makes a new key: seconds, or 90min, 12h, 1d
    #[arg(long, value_name = "SECONDS", default_value = "3600", value_parser = interval)]
    pub interval: u32,
    /// How many days the servers' certificates are good for; the authority's for ten years, or as
    /// long if that is more
    #[arg(long, value_name = "DAYS", default_value_t = 365)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=36_500))]
    pub days: u32,
}

/// What the commands on a directory have in common.
#[derive(Clone, Debug, Args)]
pub struct Changing {
    /// The directory that init made
    #[arg(value_name = "DIR")]
    pub dir: PathBuf,
    /// Print what was done and what is to be done as JSON
    #[arg(long)]
    pub json: bool,
}

/// See [`Command::Add`].
#[derive(Clone, Debug, Args)]
pub struct AddArgs {
    /// Which directory.
    #[command(flatten)]
    pub changing: Changing,
    /// Do not ask the servers whether a majority is left
    #[arg(long)]
    pub offline: bool,
    /// Where the new servers listen for the others: IPv4, IPv6 or host name, perhaps with a port
    #[arg(value_name = "ADDRESS", required = true)]
    pub addresses: Vec<String>,
    /// They are not to vote: 'voter: false' in their entries
    #[arg(long)]
    pub non_voter: bool,
    /// The port of addresses without one
    #[arg(long, value_name = "PORT", default_value_t = 10001)]
    #[arg(value_parser = clap::value_parser!(u16).range(1..))]
    pub port: u16,
    /// How many days the new certificates are good for
    #[arg(long, value_name = "DAYS", default_value_t = 365)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=36_500))]
    pub days: u32,
}

/// See [`Command::Remove`].
#[derive(Clone, Debug, Args)]
pub struct RemoveArgs {
    /// Which directory.
    #[command(flatten)]
    pub changing: Changing,
    /// Do not ask the servers whether a majority is left
    #[arg(long)]
    pub offline: bool,
    /// Numbers of servers, as the server list has them
    #[arg(value_name = "ID", required = true, value_parser = number)]
    pub ids: Vec<u32>,
}

/// See [`Command::Replace`].
#[derive(Clone, Debug, Args)]
pub struct ReplaceArgs {
    /// Which directory.
    #[command(flatten)]
    pub changing: Changing,
    /// Do not ask the servers whether a majority is left
    #[arg(long)]
    pub offline: bool,
    /// The number of the server that goes
    #[arg(value_name = "ID", value_parser = number)]
    pub id: u32,
    /// Where the new server listens for the others [default: where the old one did]
    #[arg(value_name = "ADDRESS")]
    pub address: Option<String>,
    /// The port of an address without one
    #[arg(long, value_name = "PORT", default_value_t = 10001)]
    #[arg(value_parser = clap::value_parser!(u16).range(1..))]
    pub port: u16,
    /// How many days the new certificate is good for
    #[arg(long, value_name = "DAYS", default_value_t = 365)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=36_500))]
    pub days: u32,
}

/// See [`Command::Renew`].
#[derive(Clone, Debug, Args)]
pub struct RenewArgs {
    /// Which directory.
    #[command(flatten)]
    pub changing: Changing,
    /// Numbers of servers, as the server list has them [default: all]
    #[arg(value_name = "ID", value_parser = number)]
    pub ids: Vec<u32>,
    /// Go on to the next step towards a new authority
    #[arg(long)]
    pub authority: bool,
    /// How many days the new certificates are good for
    #[arg(long, value_name = "DAYS", default_value_t = 365)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=36_500))]
    pub days: u32,
}

/// See [`Command::Metrics`].
#[derive(Clone, Debug, Args)]
pub struct MetricsArgs {
    /// Where stats_over_http.so answers, http:// only; or - for its JSON on standard input
    #[arg(value_name = "URL", default_value = "http://127.0.0.1:8080/_stats")]
    pub source: String,
    /// Write them into this file in one step, for the node exporter's textfile collector. Where nothing
    /// answers the file says stek_share_up 0, and the exit code is 2
    #[arg(long, value_name = "FILE")]
    pub textfile: Option<PathBuf>,
    /// A label fleet="NAME" for each metric
    #[arg(long, value_name = "NAME")]
    pub fleet: Option<String>,
}

/// A `server_id`.
fn number(text: &str) -> Result<u32, String> {
    let id = text.parse::<i32>().ok().and_then(|id| u32::try_from(id).ok());
    id.ok_or_else(|| {
        format!(
            "give a server's number in the server list, from 0 to {}, and not its address",
            i32::MAX
        )
    })
}

/// Units that may follow a number, in milliseconds.
const UNITS: [(&str, f64); 6] = [
    ("ms", 1.0),
    ("s", 1000.0),
    ("min", 60_000.0),
    ("m", 60_000.0),
    ("h", 3_600_000.0),
    ("d", 86_400_000.0),
];

/// A span: a number of seconds, or one with a unit, perhaps with a fraction.
fn span(text: &str) -> Option<Duration> {
    let text = text.trim();
    let unit = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
    let (number, unit) = text.split_at(unit);
    let ms = match unit {
        "" => 1000.0,
        _ => UNITS.iter().find(|(word, _)| *word == unit)?.1,
    };
    let number: f64 = number.trim().parse().ok()?;
    Duration::try_from_secs_f64(number * ms / 1000.0).ok()
}

/// A span from 0.1 s to [`MAX_TIMEOUT_S`].
fn seconds(text: &str) -> Result<Duration, String> {
    let allowed = Duration::from_millis(100)..=Duration::from_secs(MAX_TIMEOUT_S);
    span(text).filter(|span| allowed.contains(span)).ok_or_else(|| {
        format!("give a number of seconds from 0.1 to {MAX_TIMEOUT_S}, or 500ms, 2min")
    })
}

/// A `key_update_interval`.
fn interval(text: &str) -> Result<u32, String> {
    let whole = span(text).filter(|span| span.subsec_nanos() == 0).map(|span| span.as_secs());
    let seconds = whole.and_then(|seconds| i32::try_from(seconds).ok()).filter(|s| *s > 0);
    seconds
        .and_then(|seconds| u32::try_from(seconds).ok())
        .ok_or_else(|| format!("give whole seconds from 1 to {}, or 90min, 12h, 1d", i32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_words_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_server_is_meant_by_its_number() {
        assert_eq!((number("0"), number("2147483647")), (Ok(0), Ok(2_147_483_647)));
        for bad in ["", "-1", "2147483648", "99999999999", "abc", "10.0.0.2", "1,2"] {
            assert!(
                number(bad).is_err_and(|why| why.contains("number in the server list")),
                "{bad:?}"
            );
        }
    }

    #[test]
    fn seconds_have_bounds() {
        assert_eq!(seconds("2.5"), Ok(Duration::from_millis(2500)));
        assert_eq!(seconds("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(seconds("2min"), Ok(Duration::from_secs(120)));
        assert_eq!((interval("1h"), interval("3600")), (Ok(3600), Ok(3600)));
        assert_eq!(interval("1.5d"), Ok(129_600));
        for bad in ["0", "0.5", "1w", "h", "-1h", "3000000000", ""] {
            assert!(interval(bad).is_err_and(|why| why.contains("90min, 12h, 1d")), "{bad:?}");
        }
        for bad in ["0", "-1", "601", "nan", "inf", "", "1w", "1h", "s", "1e300"] {
            assert!(seconds(bad).is_err_and(|why| why.contains("0.1 to 600")), "{bad:?}");
        }
    }
}
