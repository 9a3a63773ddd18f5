//! One request over the wire, and what its outcome means: an answer, something that may pass, or something that will not.

use std::time::{Duration, SystemTime};

use serde::Deserialize;
use ureq::{
    Agent, Body, Timeout,
    http::{HeaderMap, Response, StatusCode, Uri, header},
};

use super::{
    reply::{End, Reply, Usage},
    settings::{JudgeSettings, Secret},
};

/// A connection that takes longer leads nowhere.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Answers are a few kilobytes; what is longer is not from a judge.
const LONGEST_BODY: u64 = 4 << 20;
/// How much of an unexpected body is quoted, in characters.
const QUOTED: usize = 300;

pub(super) enum Outcome {
    Answered(Reply),
    /// It may go better next time.
    Again {
        why: String,
        /// How long the judge asks everybody to wait.
        after: Option<Duration>,
        /// Whether there was a judge at all.
        reached: bool,
        /// Tokens of an answer that was of no use.
        paid: Option<Usage>,
    },
    /// It would go the same way every time, and for every request.
    Stop {
        what: String,
        hint: String,
    },
}

impl Outcome {
    fn again(why: impl Into<String>) -> Self {
        Outcome::Again { why: why.into(), after: None, reached: true, paid: None }
    }
}

pub(super) struct Endpoint {
    agent: Agent,
    address: Uri,
    key: Option<Secret>,
    /// For hints.
    key_env: String,
    timeout: Duration,
}

impl Endpoint {
    pub(super) fn new(settings: &JudgeSettings, address: Uri, key: Option<Secret>) -> Self {
        let mut config = Agent::config_builder()
            .http_status_as_error(false)
            // A redirect would turn a POST into a GET, or carry the key elsewhere.
            .max_redirects(0)
            .max_redirects_will_error(false)
            .timeout_global(Some(settings.timeout))
            .timeout_connect(Some(settings.timeout.min(CONNECT_TIMEOUT)))
            .max_idle_connections(settings.concurrency.get())
            .max_idle_connections_per_host(settings.concurrency.get())
            .user_agent(concat!("mdpo/", env!("CARGO_PKG_VERSION")));
        // A proxy of the environment leads out of this machine, and `NO_PROXY` is often forgotten.
        if is_loopback(&address) {
            config = config.proxy(None);
        }
        let (key_env, timeout) = (settings.key_env_name().to_owned(), settings.timeout);
        Endpoint { agent: config.build().new_agent(), address, key, key_env, timeout }
    }

    pub(super) fn address(&self) -> String {
        self.address.to_string()
    }

    /// Sends `body` once.
    pub(super) fn attempt(&self, body: &[u8]) -> Outcome {
        let mut request = self.agent.post(&self.address).header(header::CONTENT_TYPE, "application/json");
        if let Some(key) = &self.key {
            request = request.header(header::AUTHORIZATION, key.header());
        }
        match request.send(body) {
            Ok(response) => self.understand(response),
            Err(error) => self.broken(&error),
        }
    }

    fn understand(&self, mut response: Response<Body>) -> Outcome {
        let status = response.status();
        let after = retry_after(response.headers(), SystemTime::now());
        let location =
            response.headers().get(header::LOCATION).map(|to| String::from_utf8_lossy(to.as_bytes()).into_owned());
        let body = match response.body_mut().with_config().limit(LONGEST_BODY).read_to_vec() {
            Ok(body) => body,
            Err(ureq::Error::BodyExceedsLimit(_)) => {
                return Outcome::again(format!("it sent more than {} MiB", LONGEST_BODY >> 20));
            }
            Err(error) => return self.broken(&error),
        };
        if status.is_success() {
            return read(&body, |text| self.quoted(text));
        }
        let says = match self.quoted(&String::from_utf8_lossy(&body)) {
            text if text.is_empty() => status.to_string(),
            text => format!("{status}: {text}"),
        };
        let may_pass = status.is_server_error()
            || matches!(
                status,
                StatusCode::TOO_MANY_REQUESTS
                    | StatusCode::REQUEST_TIMEOUT
                    | StatusCode::CONFLICT
                    | StatusCode::TOO_EARLY
            );
        // OpenAI says 429 to an account without credit too, which no waiting mends.
        if may_pass && !is_out_of_credit(&body) {
            return Outcome::Again { why: format!("it answered {says}"), after, reached: true, paid: None };
        }
        self.refusal(status, &says, location)
    }

    fn refusal(&self, status: StatusCode, says: &str, location: Option<String>) -> Outcome {
        let key_env = &self.key_env;
        let hint = match (status, location) {
            (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN, _) if self.key.is_none() => {
                format!("no key was sent: set it in `{key_env}`, or name another variable with `--judge-key-env`")
            }
            (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN, _) => {
                format!("check the key in `{key_env}`, and that it may use the model of `--judge-model`")
            }
            (StatusCode::NOT_FOUND, _) => {
                "check `--judge-url` (most services have their base at `/v1`) and `--judge-model`".to_owned()
            }
            (StatusCode::TOO_MANY_REQUESTS, _) => "the account has no credit left; nothing more is asked".to_owned(),
            (_, Some(location)) => format!("it has moved: give the base of `{location}` as `--judge-url`"),
            _ => "check `--judge-model`, and whether that model takes the parameters that are sent".to_owned(),
        };
        Outcome::Stop { what: format!("the judge answered {says}"), hint }
    }

    /// A request that brought no whole response.
    fn broken(&self, error: &ureq::Error) -> Outcome {
        use std::io::ErrorKind;
        let again = |why: String, reached: bool| Outcome::Again { why, after: None, reached, paid: None };
        match error {
            ureq::Error::Timeout(Timeout::Connect | Timeout::Resolve) => {
                again("no connection within the time allowed".to_owned(), false)
            }
            ureq::Error::Timeout(_) => again(format!("no whole answer within {} s", self.timeout.as_secs_f64()), true),
            ureq::Error::HostNotFound => again("no such host".to_owned(), false),
            ureq::Error::ConnectionFailed => again("no connection".to_owned(), false),
            ureq::Error::ConnectProxyFailed(why) => {
                again(format!("the proxy made no connection: {}", self.quoted(why)), false)
            }
            ureq::Error::Io(error) => {
                let unreached = matches!(
                    error.kind(),
                    ErrorKind::ConnectionRefused
                        | ErrorKind::HostUnreachable
                        | ErrorKind::NetworkUnreachable
                        | ErrorKind::AddrNotAvailable
                );
                let what = if unreached { "no connection" } else { "the connection broke" };
                again(format!("{what}: {error}"), !unreached)
            }
            ureq::Error::Tls(_) | ureq::Error::Rustls(_) | ureq::Error::TlsRequired | ureq::Error::InvalidProxyUrl => {
                Outcome::Stop {
                    what: format!("no secure connection to the judge: {error}"),
                    hint: "check `--judge-url` (`http://` or `https://`?) and the certificate of the server".to_owned(),
                }
            }
            other => again(self.quoted(&other.to_string()), true),
        }
    }

    /// What a service says, fit for a message: the words of an error object where there is one, one line, not long, without the key.
    fn quoted(&self, text: &str) -> String {
        let said =
            serde_json::from_str::<Complaint>(text).ok().and_then(Complaint::words).unwrap_or_else(|| text.to_owned());
        let said = self.key.as_ref().map_or_else(|| said.clone(), |key| key.hidden_in(&said));
        let line = said
            .split(|c: char| c.is_whitespace() || c.is_control())
            .filter(|word| !word.is_empty())
            .collect::<Vec<_>>()
            .join(" ");
        match line.char_indices().nth(QUOTED) {
            Some((end, _)) => format!("{}…", &line[..end]),
            None => line,
        }
    }
}

/// `{"error": {"message": …}}` of OpenAI, `{"error": …}`, `{"message": …}` and `{"detail": …}` of others.
#[derive(Deserialize)]
struct Complaint {
    error: Option<Fault>,
    message: Option<String>,
    detail: Option<String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Fault {
    Object { message: Option<String>, code: Option<serde_json::Value> },
    Words(String),
}

impl Complaint {
    fn words(self) -> Option<String> {
        let error = match self.error {
            Some(Fault::Object { message, .. }) => message,
            Some(Fault::Words(words)) => Some(words),
            None => None,
        };
        error.or(self.message).or(self.detail)
    }
}

fn is_out_of_credit(body: &[u8]) -> bool {
    let code = |complaint: Complaint| match complaint.error {
        Some(Fault::Object { code, .. }) => code,
        _ => None,
    };
    serde_json::from_slice(body).ok().and_then(code).is_some_and(|code| code == "insufficient_quota")
}

/// What is read of a completion. All may be missing, so that the tokens of an unusable answer are still counted.
#[derive(Deserialize)]
struct Completion {
    model: Option<String>,
    #[serde(default)]
    choices: Vec<Choice>,
    usage: Option<Usage>,
}

#[derive(Deserialize)]
struct Choice {
    message: Option<Answer>,
    finish_reason: Option<String>,
}

#[derive(Deserialize)]
struct Answer {
    content: Option<String>,
}

fn read(body: &[u8], quoted: impl Fn(&str) -> String) -> Outcome {
    let completion: Completion = match serde_json::from_slice(body) {
        Ok(completion) => completion,
        Err(error) => {
            let found = quoted(&String::from_utf8_lossy(body));
            return Outcome::again(format!("its answer is no chat completion ({error}): `{found}`"));
        }
    };
    let usage = completion.usage;
    let Some(Choice { message, finish_reason }) = completion.choices.into_iter().next() else {
        return Outcome::Again {
            why: "its answer has no `choices`".to_owned(),
            after: None,
            reached: true,
            paid: usage,
        };
    };
    let end = match finish_reason.as_deref() {
        Some("length") => End::Length,
        Some("content_filter") => End::Filter,
        _ => End::Complete,
    };
    match message.and_then(|message| message.content) {
        // A reasoning model that used up its tokens, or a filter, says nothing, and would again.
        None if end != End::Complete => {
            Outcome::Answered(Reply { text: String::new(), end, model: completion.model, usage })
        }
        None => Outcome::Again {
            why: "its answer has no `choices[0].message.content`".to_owned(),
            after: None,
            reached: true,
            paid: usage,
        },
        Some(text) => Outcome::Answered(Reply { text, end, model: completion.model, usage }),
    }
}

/// The wait of a `Retry-After` header: seconds, or a date.
fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse::<f64>() {
        return Duration::try_from_secs_f64(seconds).ok();
    }
    httpdate::parse_http_date(text).ok().map(|date| date.duration_since(now).unwrap_or_default())
}

fn is_loopback(address: &Uri) -> bool {
    let host = address.host().unwrap_or_default().trim_matches(['[', ']']);
    match host.parse::<std::net::IpAddr>() {
        Ok(ip) => ip.is_loopback() || ip.is_unspecified(),
        Err(_) => host.eq_ignore_ascii_case("localhost") || host.to_ascii_lowercase().ends_with(".localhost"),
    }
}

#[cfg(test)]
mod tests {
    use ureq::http::HeaderValue;

    use super::*;

    #[test]
    fn a_wait_is_read_as_seconds_and_as_a_date() {
        let now = httpdate::parse_http_date("Sun, 06 Nov 1994 08:49:30 GMT").unwrap();
        let wait = |text: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static(text));
            retry_after(&headers, now)
        };
        assert_eq!(wait("3"), Some(Duration::from_secs(3)));
        assert_eq!(wait(" 0.25 "), Some(Duration::from_millis(250)));
        assert_eq!(wait("Sun, 06 Nov 1994 08:49:37 GMT"), Some(Duration::from_secs(7)));
        assert_eq!(wait("Sun, 06 Nov 1994 08:00:00 GMT"), Some(Duration::ZERO));
        assert_eq!([wait("-1"), wait("soon"), wait("inf"), wait("1e300")], [None; 4]);
        assert_eq!(retry_after(&HeaderMap::new(), now), None);
    }

    #[test]
    fn loopback_is_recognised() {
        let is = |address: &str| is_loopback(&address.parse().unwrap());
        assert!(
            is("http://127.0.0.1:1/v1")
                && is("http://127.9.9.9")
                && is("http://[::1]:8000/v1")
                && is("http://LocalHost/v1")
        );
        assert!(!is("http://127.0.0.1.example/v1") && !is("https://api.openai.com/v1") && !is("http://10.0.0.1"));
    }
}
