//! `metrics`: what Traffic Server's stats_over_http says of the plugin, in Prometheus's text format
//! (version 0.0.4).
//!
//! Which metrics there are and what they mean is the plugin's own table's to say. Invariants:
//! an answer of any content and speed costs bounded time and memory, and no text of it reaches the
//! output other than whole numbers, names that Prometheus accepts, and quoted versions. A file is whole
//! at any time.

use std::fs::{self, OpenOptions};
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;
use stek_share::metrics::{version_words, Metric, PREFIX, UP, VERSION};
use stek_share::transport::resolver::look_up;

use crate::cli::MetricsArgs;
use crate::exit_code::{Ended, Failure, Outcome};
use crate::output::{complain, print, styled, BAD};

/// The largest answer, in bytes; a Traffic Server has some 2000 metrics in 100 KiB.
const MAX_ANSWER: usize = 16 << 20;

/// The longest value of a label, in characters.
const MAX_LABEL: usize = 200;

/// The mode of a text file: an exporter of another user reads it.
const READABLE: u32 = 0o644;

/// What is said of other words.
const NO_URL: &str = "is no http:// URL; give one such as http://127.0.0.1:8080/_stats";

/// What to do where nothing is found.
const LOOK: &str =
    "see that Traffic Server runs there, and what proxy.config.http.server_ports has";

/// The most addresses of a host that are tried.
const MAX_ADDRESSES: usize = 8;

/// Reads, translates, and prints or writes.
pub fn run(args: &MetricsArgs, limit: Duration) -> Ended {
    let fleet = args.fleet.as_deref();
    let read = match args.source.as_str() {
        "-" => from_stdin(),
        url => fetch(url, limit).map_err(|why| format!("{url}: {why}")),
    };
    let named = |why| match args.source.as_str() {
        "-" => format!("standard input: {why}"),
        url => format!("{url}: {why}"),
    };
    let metrics = read.and_then(|text| translate(&text, fleet).map_err(named));
    match (metrics, &args.textfile) {
        (Ok(metrics), None) => print(&metrics).map(|()| Outcome::Healthy),
        (Err(why), None) => Err(Failure::new(why)),
        (Ok(metrics), Some(file)) => put(file, &metrics).map(|()| Outcome::Healthy),
        (Err(why), Some(file)) => {
            // A file that is left as it was would say for ever that all is well.
            put(file, &away(fleet))?;
            let line = format!("{why}; {} says stek_share_up 0 now", file.display());
            complain(&format!("{} {line}", styled("error:", BAD)));
            Ok(Outcome::Broken)
        }
    }
}

/// What there is to say of a server whose Traffic Server or plugin does not answer.
fn away(fleet: Option<&str>) -> String {
    Metric::named(UP).map_or_else(String::new, |up| {
        sample(&up.prometheus_name(), (up.kind.word(), up.meaning), &labels(&[("fleet", fleet)]), 0)
    })
}

/// Puts a file in place of another in one step, so that no reader finds half of it.
fn put(file: &Path, text: &str) -> Result<(), Failure> {
    let failed = |what: &str, error: io::Error| {
        Failure::new(format!(
            "--textfile {}: cannot be {what}: {error}; give a file in a directory that is there and may be \
             written",
            file.display()
        ))
    };
    let name = file.file_name().ok_or_else(|| {
        Failure::new(format!(
            "--textfile {}: names no file; give one that ends in .prom",
            file.display()
        ))
    })?;
    // The node exporter reads what ends in .prom.
    let draft = file.with_file_name(format!(".{}.{}", name.to_string_lossy(), std::process::id()));
    // Left behind by one that was killed, or put there by whoever owns the directory: never followed.
    let _ = fs::remove_file(&draft);
    let create = || OpenOptions::new().write(true).create_new(true).mode(READABLE).open(&draft);
    let written = create()
        .and_then(|mut draft| {
            draft.set_permissions(fs::Permissions::from_mode(READABLE))?;
            draft.write_all(text.as_bytes())
        })
        .map_err(|error| failed("written", error))
        .and_then(|()| fs::rename(&draft, file).map_err(|error| failed("put in place", error)));
    if written.is_err() {
        let _ = fs::remove_file(&draft);
    }
    written
}

fn from_stdin() -> Result<String, String> {
    let mut text = String::new();
    let read = io::stdin().lock().take(MAX_ANSWER as u64).read_to_string(&mut text);
    read.map(|_| text).map_err(|error| format!("standard input cannot be read: {error}"))
}

/// The exposition of all the plugin's metrics in an answer of stats_over_http.
///
/// # Errors
/// Why there are none, in words that follow the source's name.
fn translate(json: &str, fleet: Option<&str>) -> Result<String, String> {
    let value: Value = serde_json::from_str(json)
        .map_err(|error| format!("is not JSON: {error}; is it stats_over_http's answer?"))?;
    let Some(global) = value.get("global").and_then(Value::as_object) else {
        return Err("has no \"global\"; is it stats_over_http's answer?".to_owned());
    };
    let own = labels(&[("fleet", fleet)]);
    let (mut out, mut version) = (String::new(), None);
    for (full, value) in global {
        let Some(name) = full.strip_prefix(PREFIX) else { continue };
        let Some(number) = whole(value) else { continue };
        if name == VERSION {
            version = i64::try_from(number).ok().map(version_words);
        }
        out += &match Metric::named(name) {
            Some(known) => {
                let kind = (known.kind.word(), known.meaning);
                sample(&known.prometheus_name(), kind, &own, number)
            }
            // Of a newer plugin than this command.
            None if is_plain(name) => {
                sample(&format!("stek_share_{name}"), ("untyped", "not known here"), &own, number)
            }
            None => continue,
        };
    }
    if !out.is_empty() {
        let host = global.get("server").and_then(Value::as_str);
        let told = labels(&[
            ("fleet", fleet),
            ("stekctl", Some(env!("CARGO_PKG_VERSION"))),
            ("traffic_server", host),
            ("version", version.as_deref()),
        ]);
        out += &sample("stek_share_info", ("gauge", "versions, as labels"), &told, 1);
    }
    if !out.is_empty() {
        Ok(out)
    } else {
        Err(format!(
            "has no {PREFIX}*; the plugin does not run in that Traffic Server: see its \
         plugin.config and diags.log"
        ))
    }
}

/// One metric in Prometheus's form.
fn sample(name: &str, (kind, help): (&str, &str), labels: &str, number: u64) -> String {
    format!("# HELP {name} {help}\n# TYPE {name} {kind}\n{name}{labels} {number}\n")
}

/// Labels in braces; nothing where none is known.
fn labels(known: &[(&str, Option<&str>)]) -> String {
    let known = known.iter().filter_map(|(name, value)| Some((name, (*value)?)));
    let words: Vec<String> = known
        .map(|(name, value)| {
            let mut quoted = String::new();
            for c in value.chars().take(MAX_LABEL) {
                match c {
                    '\\' | '"' => quoted.extend(['\\', c]),
                    _ if c.is_control() => quoted.push(' '),
                    _ => quoted.push(c),
                }
            }
            format!("{name}=\"{quoted}\"")
        })
        .collect();
    if words.is_empty() {
        String::new()
    } else {
        format!("{{{}}}", words.join(","))
    }
}

/// Whether Prometheus accepts the name as it is.
fn is_plain(name: &str) -> bool {
    !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

/// Traffic Server 9.2 writes numbers as texts, later ones may not. It prints them unsigned, so that what
/// is above the largest signed one was negative, which no metric of the plugin is.
fn whole(value: &Value) -> Option<u64> {
    let number = match value {
        Value::Number(number) => number.as_u64(),
        Value::String(text) => text.parse().ok(),
        _ => None,
    };
    number.filter(|number| i64::try_from(*number).is_ok())
}

/// Asks for `url` and returns the body of the answer.
///
/// # Errors
/// Why there is none, in words that follow the URL.
fn fetch(url: &str, limit: Duration) -> Result<String, String> {
    let deadline = Instant::now() + limit;
    let rest = url.strip_prefix("http://").ok_or(NO_URL)?;
    let (host, path) = match rest.find('/') {
        Some(at) => rest.split_at(at),
        None => (rest, "/"),
    };
    let has_port = host
        .rsplit_once(':')
        .is_some_and(|(before, _)| before.ends_with(']') || !before.contains(':'));
    let address = if has_port { host.to_owned() } else { format!("{host}:80") };
    if [host, path].iter().any(|part| part.contains(|c: char| c.is_whitespace() || c.is_control()))
        || host.is_empty()
    {
        return Err(NO_URL.to_owned());
    }
    let mut stream = connect(&address, deadline)?;
    let request = format!(
        "GET {path} HTTP/1.0\r\nHost: {host}\r\nAccept: application/json\r\n\
         Connection: close\r\n\r\n"
    );
    let failed = |error: io::Error| format!("cannot be read: {error}");
    stream.set_write_timeout(Some(limit)).map_err(failed)?;
    stream.write_all(request.as_bytes()).map_err(failed)?;
    let answer = read_all(&mut stream, deadline)?;
    let (head, body) = split_head(&answer)
        .ok_or("answers something that is not HTTP; give a port that serves plain HTTP")?;
    let status = head.lines().next().unwrap_or_default();
    match status.split(' ').nth(1) {
        Some("200") => String::from_utf8(body.to_vec()).map_err(|_| "is not text".to_owned()),
        _ => Err(format!(
            "answers {status:?}; load stats_over_http.so in plugin.config, and see its path there"
        )),
    }
}

fn connect(address: &str, deadline: Instant) -> Result<TcpStream, String> {
    let left = deadline.saturating_duration_since(Instant::now());
    let found = look_up(address, left)
        .map_err(|error| format!("is not found: {error}; give its address"))?;
    let mut last = format!("has no address; {LOOK}");
    for address in found.into_iter().take(MAX_ADDRESSES) {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            break;
        }
        match TcpStream::connect_timeout(&address, left) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = format!("cannot be reached at {address}: {error}; {LOOK}"),
        }
    }
    Err(last)
}

/// All that comes until the other end closes, within the deadline.
fn read_all(stream: &mut TcpStream, deadline: Instant) -> Result<Vec<u8>, String> {
    let (mut answer, mut buffer) = (Vec::new(), [0; 8192]);
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err("does not answer in time; see --timeout".to_owned());
        }
        let wait = stream.set_read_timeout(Some(left));
        match wait.and_then(|()| stream.read(&mut buffer)) {
            Ok(0) => return Ok(answer),
            Ok(count) => answer.extend_from_slice(buffer.get(..count).unwrap_or_default()),
            Err(error) => match error.kind() {
                io::ErrorKind::Interrupted
                | io::ErrorKind::WouldBlock
                | io::ErrorKind::TimedOut => {}
                _ => return Err(format!("cannot be read: {error}")),
            },
        }
        if answer.len() > MAX_ANSWER {
            return Err(format!("answers more than {MAX_ANSWER} bytes"));
        }
    }
}

fn split_head(answer: &[u8]) -> Option<(String, &[u8])> {
    const END: &[u8] = b"\r\n\r\n";
    let at = answer.windows(END.len()).position(|window| window == END)?;
    let (head, body) = answer.split_at(at);
    let head = String::from_utf8_lossy(head).into_owned();
    head.starts_with("HTTP/1.").then_some(())?;
    Some((head, body.get(END.len()..)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;
    use std::thread;

    #[test]
    fn what_stats_over_http_says_becomes_an_exposition() -> Result<(), String> {
        let json = r#"{ "global": {
            "proxy.process.http.requests": "7",
            "plugin.stek_share.elections": "3",
            "plugin.stek_share.leader_id": 4,
            "plugin.stek_share.wrapped": 18446744073709551615,
            "plugin.stek_share.negative": -1,
            "plugin.stek_share.version": "2003",
            "plugin.stek_share.of_the_future": "12",
            "plugin.stek_share.bad name} 1\nx": "1",
            "plugin.stek_share.term": "no number",
            "server": "9.2.9"
        } }"#;
        let lines = translate(json, None)?;
        let meaning = Metric::named("elections").map_or("", |metric| metric.meaning);
        let expected = [
            &*format!("# HELP stek_share_elections_total {meaning}"),
            "# TYPE stek_share_elections_total counter",
            "stek_share_elections_total 3",
        ];
        let elections: Vec<&str> = lines.lines().filter(|l| l.contains("elections")).collect();
        assert_eq!(elections, expected);
        assert!(lines.contains("\n# TYPE stek_share_leader_id gauge\nstek_share_leader_id 4\n"));
        let info =
            "stek_share_info{stekctl=\"0.1.0\",traffic_server=\"9.2.9\",version=\"0.2.3\"} 1\n";
        assert!(lines.ends_with(info), "{lines}");
        let named = translate(json, Some("a\\\"\nb"))?;
        assert!(named.contains("\nstek_share_leader_id{fleet=\"a\\\\\\\" b\"} 4\n"), "{named}");
        assert!(lines.contains("# TYPE stek_share_of_the_future untyped\n"), "{lines}");
        assert_eq!(lines.lines().count(), 15, "three lines for each of five: {lines}");
        Ok(())
    }

    #[test]
    fn what_has_no_metrics_is_said() {
        for (json, words) in [
            ("<html>", "is not JSON"),
            ("[]", "has no \"global\""),
            (r#"{"global": {"x": "1"}}"#, "the plugin does not run"),
        ] {
            let why = translate(json, None).unwrap_err();
            assert!(why.contains(words), "{why}");
        }
    }

    /// Serves one request with these bytes; says where, and what was asked.
    fn serve(answer: &'static str) -> io::Result<(String, thread::JoinHandle<String>)> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let url = format!("http://{}/_stats?x", listener.local_addr()?);
        let thread = thread::spawn(move || {
            let Ok((mut stream, _)) = listener.accept() else { return String::new() };
            let mut asked = [0; 1024];
            let count = stream.read(&mut asked).unwrap_or(0);
            let _ = stream.write_all(answer.as_bytes());
            String::from_utf8_lossy(&asked[..count]).into_owned()
        });
        Ok((url, thread))
    }

    #[test]
    fn an_answer_over_http_is_its_body_and_a_refusal_is_named() -> io::Result<()> {
        let limit = Duration::from_secs(20);
        let (url, asked) = serve("HTTP/1.0 200 OK\r\nA: b\r\n\r\n{}\r\n\r\n")?;
        assert_eq!(fetch(&url, limit), Ok("{}\r\n\r\n".to_owned()));
        let asked = asked.join().unwrap_or_default();
        assert!(asked.starts_with("GET /_stats?x HTTP/1.0\r\nHost: 127.0.0.1:"), "{asked}");
        let (url, _) = serve("HTTP/1.1 404 Not Found\r\n\r\n")?;
        assert!(fetch(&url, limit).is_err_and(|why| why.contains("404 Not Found")));
        let (url, _) = serve("SSH-2.0-x\r\n")?;
        assert!(fetch(&url, limit).is_err_and(|why| why.contains("is not HTTP; give a port")));
        for bad in ["https://x/", "ftp://x", "http://", "http://a b/", "http://a/\r\nX: y"] {
            assert_eq!(fetch(bad, limit), Err(NO_URL.to_owned()), "{bad:?}");
        }
        Ok(())
    }

    #[test]
    fn who_does_not_answer_is_given_up() -> io::Result<()> {
        let silent = TcpListener::bind("127.0.0.1:0")?;
        let url = format!("http://{}/", silent.local_addr()?);
        let why = fetch(&url, Duration::from_millis(200));
        assert_eq!(why, Err("does not answer in time; see --timeout".to_owned()));
        Ok(())
    }
}
