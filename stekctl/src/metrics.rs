//! `metrics`: what Traffic Server's stats_over_http says of the plugin, in Prometheus's text format
//! (version 0.0.4).
//!
//! Which metrics there are and what they mean is the plugin's own table's to say. Invariants:
//! an answer of any content and speed costs bounded time and memory, and no text of it reaches the
//! output other than whole numbers and names that Prometheus accepts.

use std::fmt::Write as _;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde_json::Value;
use stek_share::metrics::{Metric, PREFIX};
use stek_share::transport::resolver::look_up;

use crate::cli::MetricsArgs;
use crate::exit_code::{Ended, Failure, Outcome};
use crate::output::print;

/// The largest answer, in bytes; a Traffic Server has some 2000 metrics in 100 KiB.
const MAX_ANSWER: usize = 16 << 20;

/// The most addresses of a host that are tried.
const MAX_ADDRESSES: usize = 8;

/// Reads, translates and prints.
pub fn run(args: &MetricsArgs, limit: Duration) -> Ended {
    let text = match args.source.as_str() {
        "-" => from_stdin()?,
        url => fetch(url, limit).map_err(|why| Failure::new(format!("{url}: {why}")))?,
    };
    let metrics = translate(&text).map_err(|why| {
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
fn translate(json: &str) -> Result<String, String> {
    let value: Value = serde_json::from_str(json)
        .map_err(|error| format!("is not JSON: {error}; is it stats_over_http's answer?"))?;
    let Some(global) = value.get("global").and_then(Value::as_object) else {
        return Err("has no \"global\"; is it stats_over_http's answer?".to_owned());
    };
    let mut out = String::new();
    for (full, value) in global {
        let Some(name) = full.strip_prefix(PREFIX) else { continue };
        let Some(number) = whole(value) else { continue };
        let (exported, kind, help) = match Metric::named(name) {
            Some(known) => (known.prometheus_name(), known.kind.word(), known.meaning),
            // Of a newer plugin than this command.
            None if is_plain(name) => (format!("stek_share_{name}"), "untyped", "not known here"),
            None => continue,
        };
        // Writing to a string cannot fail.
        let _ = write!(
            out,
            "# HELP {exported} {help}\n# TYPE {exported} {kind}\n{exported} {number}\n"
        );
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

/// Whether Prometheus accepts the name as it is.
fn is_plain(name: &str) -> bool {
    !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
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
    let left = deadline.saturating_duration_since(Instant::now());
    let found = look_up(address, left).map_err(|error| format!("is not found: {error}"))?;
    let mut last = "has no address".to_owned();
    for address in found.into_iter().take(MAX_ADDRESSES) {
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
            "plugin.stek_share.leader_id": -1,
            "plugin.stek_share.of_the_future": "12",
            "plugin.stek_share.bad name} 1\nx": "1",
            "plugin.stek_share.term": "no number",
            "server": "9.2.9"
        } }"#;
        let lines = translate(json)?;
        let meaning = Metric::named("elections").map_or("", |metric| metric.meaning);
        let expected = [
            &*format!("# HELP stek_share_elections_total {meaning}"),
            "# TYPE stek_share_elections_total counter",
            "stek_share_elections_total 3",
        ];
        let elections: Vec<&str> = lines.lines().filter(|l| l.contains("elections")).collect();
        assert_eq!(elections, expected);
        assert!(lines.contains("\n# TYPE stek_share_leader_id gauge\nstek_share_leader_id -1\n"));
        assert!(lines.contains("# TYPE stek_share_of_the_future untyped\n"), "{lines}");
        assert_eq!(lines.lines().count(), 9, "three lines for each of three: {lines}");
        Ok(())
    }

    #[test]
    fn what_has_no_metrics_is_said() {
        for (json, words) in [
            ("<html>", "is not JSON"),
            ("[]", "has no \"global\""),
            (r#"{"global": {"x": "1"}}"#, "the plugin does not run"),
        ] {
            let why = translate(json).unwrap_err();
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
        assert!(fetch(&url, limit).is_err_and(|why| why.contains("is not HTTP")));
        for bad in ["https://x/", "ftp://x", "http://", "http://a b/", "http://a/\r\nX: y"] {
            assert_eq!(fetch(bad, limit), Err("is not an http:// URL".to_owned()), "{bad:?}");
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
