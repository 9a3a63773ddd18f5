//! Everything that goes wrong on the way.

use std::{
    net::TcpListener,
    time::{Duration, Instant},
};

use mdpo_measure::judge::{End, Judge, JudgeSettings};
use tempfile::tempdir;

use crate::{
    asks, at_once, cached, numbered, open,
    server::{Act, Server, completion},
    settings, texts,
};

fn say(status: &'static str, headers: &'static str, body: &str) -> Act {
    Act::Say(status, headers, body.to_owned())
}

/// Asks once, is met by `act` first and by an echo then; how often the server was asked.
fn after(act: Act, settings: impl FnOnce(JudgeSettings) -> JudgeSettings) -> usize {
    let server = Server::start([act]);
    let judge = open(settings(crate::settings(server.url())));
    assert_eq!(texts(&judge, &asks(["a"])), ["a"]);
    assert_eq!(judge.spent().retries + 1, server.asked().len());
    server.asked().len()
}

#[test]
fn what_may_pass_is_asked_again() {
    let deep = "[".repeat(100_000);
    for act in [
        say("429 Too Many Requests", "", "{\"error\": {\"message\": \"slow down\"}}"),
        say("500 Internal Server Error", "", "oh"),
        say("503 Service Unavailable", "", ""),
        say("408 Request Timeout", "", ""),
        Act::CutBody,
        Act::HangUp,
        say("200 OK", "", "<html>busy</html>"),
        say("200 OK", "", ""),
        say("200 OK", "", &deep),
        say("200 OK", "", "{\"choices\": \"none\"}"),
        say("200 OK", "", "{\"choices\": []}"),
        say("200 OK", "", "{\"object\": \"list\", \"data\": []}"),
        say("200 OK", "", "{\"choices\": [{\"message\": {\"content\": null}, \"finish_reason\": \"stop\"}]}"),
        say("200 OK", "", "{\"choices\": [{\"message\": {\"content\": 5}}]}"),
        Act::Huge(5 << 20),
    ] {
        let shown = format!("{act:?}").chars().take(80).collect::<String>();
        assert_eq!(after(act, |settings| settings), 2, "{shown}");
    }
}

#[test]
fn a_slow_answer_is_asked_for_again() {
    let impatient = |settings: JudgeSettings| JudgeSettings { timeout: Duration::from_millis(700), ..settings };
    assert_eq!(after(Act::Slow(Duration::from_secs(20)), impatient), 2);
    assert_eq!(after(Act::Drip, impatient), 2);
}

#[test]
fn the_wait_that_the_judge_asks_for_is_kept_by_all() {
    // The first request is refused for 1.2 s, the second comes while that time runs.
    let server = Server::start([
        say("429 Too Many Requests", "Retry-After: 1.2\r\n", ""),
        Act::Slow(Duration::from_millis(300)),
    ]);
    let judge = open(at_once(2, settings(server.url())));
    assert_eq!(texts(&judge, &numbered(4)).len(), 4);
    let asked = server.asked();
    let start = asked[0].at;
    let early: Vec<Duration> =
        asked.iter().skip(2).map(|asked| asked.at - start).filter(|at| *at < Duration::from_millis(1150)).collect();
    assert!(early.is_empty(), "{early:?}");
    assert_eq!(asked.len(), 5);
}

#[test]
fn a_wait_that_is_too_long_is_told() {
    let server = Server::start([say("429 Too Many Requests", "Retry-After: 7200\r\n", "")]);
    let problem = open(settings(server.url())).ask(&asks(["a"])).unwrap_err().to_string();
    assert!(problem.contains("asks for a wait of 7200 s") && problem.contains("429"), "{problem}");
}

#[test]
fn what_will_not_pass_ends_the_call_at_once() {
    for (act, what, hint) in [
        (
            say("400 Bad Request", "", "{\"error\": {\"message\": \"Unsupported parameter:\\n 'max_tokens'\"}}"),
            "400 Bad Request: Unsupported parameter: 'max_tokens'",
            "parameters",
        ),
        (say("401 Unauthorized", "", ""), "401 Unauthorized", "check the key in `OPENAI_API_KEY`"),
        (say("403 Forbidden", "", "{\"message\": \"no\"}"), "403 Forbidden: no", "`--judge-model`"),
        (say("404 Not Found", "", "{\"error\": \"no model\"}"), "404 Not Found: no model", "`/v1`"),
        (
            say("301 Moved Permanently", "Location: https://other.example/v1/chat/completions\r\n", ""),
            "301 Moved Permanently",
            "https://other.example/v1/chat/completions",
        ),
        (
            say("429 Too Many Requests", "", "{\"error\": {\"message\": \"pay\", \"code\": \"insufficient_quota\"}}"),
            "429 Too Many Requests: pay",
            "no credit",
        ),
    ] {
        let server = Server::scripted(move |_| Some(act.clone()));
        let judge = open(at_once(1, settings(server.url())));
        let problem = judge.ask(&numbered(5)).unwrap_err().to_string();
        let (told, hinted) = problem.split_once("\n  hint: ").unwrap_or_else(|| panic!("no hint: {problem}"));
        assert!(told.starts_with(&format!("{}/chat/completions: ", server.url())), "{problem}");
        assert!(told.contains(what) && hinted.contains(hint), "{problem}");
        assert_eq!(server.asked().len(), 1, "{problem}");
    }
}

#[test]
fn a_missing_key_is_told_as_one() {
    let server = Server::start([say("401 Unauthorized", "", "")]);
    let judge = Judge::with_key(settings(server.url()), None).unwrap();
    let problem = judge.ask(&asks(["a"])).unwrap_err().to_string();
    assert!(problem.contains("no key was sent: set it in `OPENAI_API_KEY`"), "{problem}");
}

#[test]
fn an_unreachable_judge_is_one_clear_message_soon() {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let judge = open(at_once(8, settings(format!("http://127.0.0.1:{port}/v1"))));
    let start = Instant::now();
    let problem = judge.ask(&numbered(50)).unwrap_err().to_string();
    assert!(problem.contains("cannot be reached (tried 3 times)") && problem.contains("`--judge-url`"), "{problem}");
    assert!(start.elapsed() < Duration::from_secs(20));
}

#[test]
fn what_was_answered_before_a_call_ended_is_kept() {
    let refuse = |text: &str| text.ends_with('5').then(|| say("401 Unauthorized", "", ""));
    let (server, folder) = (Server::scripted(move |asked| refuse(&asked.text())), tempdir().unwrap());
    let judge = open(at_once(1, cached(server.url(), folder.path())));
    let problem = judge.ask(&numbered(9)).unwrap_err().to_string();
    assert!(problem.contains("5 of 9 answers are kept in `"), "{problem}");
    let answers = texts(&open(cached(server.url(), folder.path())), &numbered(5));
    assert_eq!((answers.len(), server.asked().len()), (5, 6));
}

#[test]
fn one_that_fails_for_good_leaves_the_others() {
    let broken = |text: &str| text.ends_with('2').then(|| say("500 Internal Server Error", "", "{\"detail\": \"oh\"}"));
    let server = Server::scripted(move |asked| broken(&asked.text()));
    let judge = open(JudgeSettings { retries: 2, ..settings(server.url()) });
    let replies = judge.ask(&numbered(6)).unwrap();
    let failed: Vec<String> =
        replies.iter().filter_map(|reply| reply.as_ref().err().map(ToString::to_string)).collect();
    assert_eq!(failed.len(), 1);
    assert!(
        replies[2].is_err()
            && failed[0].contains("asked 3 times")
            && failed[0].contains("500 Internal Server Error: oh"),
        "{failed:?}"
    );
    assert_eq!((judge.spent().failed, judge.spent().answered, judge.spent().retries), (1, 5, 2));
}

#[test]
fn a_judge_that_keeps_failing_is_left_alone() {
    let server = Server::scripted(|_| Some(say("502 Bad Gateway", "", "")));
    let judge = open(at_once(1, JudgeSettings { retries: 1, ..settings(server.url()) }));
    let problem = judge.ask(&numbered(40)).unwrap_err().to_string();
    assert!(problem.contains("failed for 3 requests in a row") && problem.contains("502 Bad Gateway"), "{problem}");
    assert_eq!(server.asked().len(), 6);
}

#[test]
fn a_cut_or_filtered_answer_is_an_answer_and_says_so() {
    let silent = "{\"choices\": [{\"message\": {\"content\": null}, \"finish_reason\": \"length\"}]}";
    let server = Server::start([
        Act::Completion("The cat", "length"),
        Act::Completion("", "content_filter"),
        say("200 OK", "", silent),
    ]);
    let judge = open(at_once(1, settings(server.url())));
    let ends: Vec<(String, End)> = judge
        .ask(&numbered(3))
        .unwrap()
        .into_iter()
        .map(|reply| reply.map(|reply| (reply.text, reply.end)).unwrap())
        .collect();
    assert_eq!(ends, [("The cat".to_owned(), End::Length), (String::new(), End::Filter), (String::new(), End::Length)]);
    assert_eq!(server.asked().len(), 3);
}

#[test]
fn settings_that_cannot_be_right_are_told_together() {
    let problem = |settings| Judge::with_key(settings, None).err().map(|error| error.to_string()).unwrap_or_default();
    for url in ["", "localhost:8000/v1", "ftp://example.com", "http://", "http:///v1", "http://a b"] {
        assert!(problem(settings(url)).contains("expected an address"), "{url}");
    }
    let with_password = problem(settings("https://me:word@example.com/v1"));
    assert!(with_password.contains("without user and password") && !with_password.contains("word@"), "{with_password}");
    let wrong = JudgeSettings {
        model: " ".to_owned(),
        temperature: Some(f64::NAN),
        timeout: Duration::ZERO,
        ..settings("http://localhost")
    };
    assert!(problem(wrong).starts_with("3 problems"));
    for (url, line) in [
        ("/v1/chat/completions", "POST /v1/chat/completions HTTP/1.1"),
        ("?version=1", "POST /chat/completions?version=1 HTTP/1.1"),
    ] {
        let server = Server::start([say("200 OK", "", &completion("yes", "stop"))]);
        texts(&open(settings(server.url().replace("/v1", "") + url)), &asks(["a"]));
        assert_eq!(server.asked()[0].line, line);
    }
}
