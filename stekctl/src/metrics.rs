//! `metrics`: what Traffic Server's stats_over_http says of the plugin, in Prometheus's text format
//! (version 0.0.4).
//!
//! Which metrics there are and what they mean is the plugin's own table's to say. What must hold:
//! an answer of any content and speed costs bounded time and memory, and no text of it reaches the
//! output other than whole numbers and names that Prometheus accepts.

use std::fmt::Write as _;
use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::cli::MetricsArgs;
use crate::outcome::{Ended, Failure, Outcome};
use crate::screen::print;

/// What the plugin's metrics begin with.
const PREFIX: &str = "plugin.stek_share.";

/// The largest answer, in bytes; a Traffic Server has some 2000 metrics in 100 KiB.
const MAX_ANSWER: usize = 16 << 20;

/// The most addresses of a host that are tried.
const MAX_ADDRESSES: usize = 8;

/// What is known of a metric.
pub struct Known<'a> {
    /// Its name without the prefix.
    pub name: &'a str,
    /// Whether it only ever grows.
    pub counts: bool,
    /// What it means.
    pub help: &'a str,
}

/// Reads, translates and prints.
pub fn run(args: &MetricsArgs, limit: Duration) -> Ended {
    let text = match args.source.as_str() {
        "-" => from_stdin()?,
        url => fetch(url, limit).map_err(|why| Failure::new(format!("{url}: {why}")))?,
    };
    let metrics = translate(&text, &table()).map_err(|why| {
        Failure::new(format!("{}: {why}", if args.source == "-" { "stdin" } else { &args.source }))
    })?;
    print(&metrics)?;
    Ok(Outcome::Healthy)
}

fn from_stdin() -> Result<String, Failure> {
    let mut text = String::new();
    let read = io::stdin().lock().take(MAX_ANSWER as u64).read_to_string(&mut text);
    read.map_err(|error| Failure::new(format!("stdin cannot be read: {error}")))?;
    Ok(text)
}

/// The exposition of all the plugin's metrics in an answer of stats_over_http.
///
/// # Errors
/// Why there are none, in words that follow the source's name.
fn translate(json: &str, table: &[Known<'_>]) -> Result<String, String> {
    let value: Value = serde_json::from_str(json)
        .map_err(|error| format!("is not JSON: {error}; is it stats_over_http's answer?"))?;
    let Some(global) = value.get("global").and_then(Value::as_object) else {
        return Err("has no \"global\"; is it stats_over_http's answer?".to_owned());
    };
    let mut out = String::new();
    for (full, value) in global {
        let Some(name) = full.strip_prefix(PREFIX) else { continue };
        let (Some(exported), Some(number)) = (exported(name), whole(value)) else { continue };
        let known = table.iter().find(|known| known.name == name);
        let help = known.map_or("A metric of another version of stek_share.", |k| k.help);
        let kind = match known {
            Some(known) if known.counts => "counter",
            Some(_) => "gauge",
            None => "untyped",
        };
        let help = help.replace('\\', "\\\\").replace('\n', " ");
        // Writing to a string cannot fail.
        let _ = write!(
            out,
            "# HELP {exported} {help}\n# TYPE {exported} {kind}\n{exported} {number}\n"
        );
    }
    match out.is_empty() {
        false => Ok(out),
        true => Err(format!(
            "has no {PREFIX}*; the plugin does not run in that Traffic Server: see its \
             plugin.config and diags.log"
        )),
    }
}

/// A name as Prometheus has it, if it can be one.
fn exported(name: &str) -> Option<String> {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.');
    let ok = !name.is_empty() && name.chars().all(fits);
    ok.then(|| format!("stek_share_{}", name.replace('.', "_")))
}

/// Traffic Server 9.2 writes numbers as texts, later ones may not.
fn whole(value: &Value) -> Option<i64> {
    match value {
        Value::Number(number) => number.as_i64(),
        Value::String(text) => text.parse().ok(),
        _ => None,
    }
}

/// Asks for `url` and returns the body of the answer.
///
/// # Errors
/// Why there is none, in words that follow the URL.
fn fetch(url: &str, limit: Duration) -> Result<String, String> {
    let deadline = Instant::now() + limit;
    let rest = url.strip_prefix("http://").ok_or("is not an http:// URL")?;
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
        return Err("is not an http:// URL".to_owned());
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
    let (head, body) = split_head(&answer).ok_or("answers something that is not HTTP")?;
    let status = head.lines().next().unwrap_or_default();
    match status.split(' ').nth(1) {
        Some("200") => String::from_utf8(body.to_vec()).map_err(|_| "is not text".to_owned()),
        _ => Err(format!(
            "answers {status:?}; load stats_over_http.so in plugin.config, and see its path there"
        )),
    }
}

fn connect(address: &str, deadline: Instant) -> Result<TcpStream, String> {
    let found = address.to_socket_addrs().map_err(|error| format!("is not found: {error}"))?;
    let mut last = "has no address".to_owned();
    for address in found.take(MAX_ADDRESSES) {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            break;
        }
        match TcpStream::connect_timeout(&address, left) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = format!("cannot be reached at {address}: {error}"),
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

/// The plugin's own table.
fn table() -> Vec<Known<'static>> {
    Vec::new()
}
