//! What is asked, in which order it comes back, what is kept and what it costs.

use std::{collections::HashSet, fs, process::Command, time::Duration};

use mdpo_measure::judge::{
    DEFAULT_KEY_ENV, End, Judge, JudgeSettings, Message, Part, Price, Request, Role, Spent, TokenLimit,
};
use serde_json::json;
use tempfile::tempdir;

use crate::{
    KEY, asks, at_once, cached, numbered, open,
    server::{Act, Server},
    settings, texts,
};

#[test]
fn a_request_is_a_chat_completion_with_the_key() {
    let server = Server::start([]);
    let judge = open(settings(server.url() + "/"));
    let reply = judge.ask(&asks(["What is it?"])).unwrap().remove(0).unwrap();
    assert_eq!(
        (reply.text.as_str(), reply.end, reply.model.as_deref()),
        ("What is it?", End::Complete, Some("judge-2024-01-01"))
    );
    let asked = &server.asked()[0];
    assert_eq!(asked.line, "POST /v1/chat/completions HTTP/1.1");
    assert_eq!(asked.header("authorization"), Some(&*format!("Bearer {KEY}")));
    assert_eq!(asked.header("content-type"), Some("application/json"));
    let messages = json!([{"role": "user", "content": "What is it?"}]);
    assert_eq!(asked.body, json!({"model": "judge", "messages": messages, "temperature": 0.0, "max_tokens": 1024}));
}

#[test]
fn parameters_are_sent_as_they_are_set() {
    let server = Server::start([]);
    let changed =
        JudgeSettings { temperature: None, limit: TokenLimit::MaxCompletionTokens(9), ..settings(server.url()) };
    let judge = Judge::with_key(changed, None).unwrap();
    let system = Message { role: Role::System, parts: vec![Part::Text("Be brief.".to_owned())] };
    let mut request = asks(["a"]).remove(0);
    request.messages.insert(0, system);
    texts(&judge, &[request]);
    let asked = &server.asked()[0];
    assert_eq!(asked.header("authorization"), None);
    let messages = json!([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "a"}]);
    assert_eq!(asked.body, json!({"model": "judge", "messages": messages, "max_completion_tokens": 9}));
}

#[test]
fn pictures_are_sent_as_they_are() {
    let (server, folder) = (Server::start([]), tempdir().unwrap());
    let (picture, text) = (folder.path().join("a.jpg"), folder.path().join("b.jpg"));
    image::RgbImage::new(2, 1).save_with_format(&picture, image::ImageFormat::Png).unwrap();
    fs::write(&text, "no picture").unwrap();
    let judge = open(settings(server.url()));
    let request = |path| Request::user([Part::Image(path), Part::Text("What is it?".to_owned())]);
    texts(&judge, &[request(picture.clone())]);
    let content = &server.asked()[0].body["messages"][0]["content"];
    // The name says JPEG, the bytes PNG.
    let url =
        content[0]["image_url"]["url"].as_str().unwrap().strip_prefix("data:image/png;base64,").expect("a data URL");
    assert_eq!(
        base64::Engine::decode(&base64::engine::general_purpose::STANDARD, url).unwrap(),
        fs::read(&picture).unwrap()
    );
    assert_eq!(content[0]["type"], "image_url");
    assert_eq!(content[1], json!({"type": "text", "text": "What is it?"}));
    let problem = judge.ask(&[request(text.clone())]).unwrap_err().to_string();
    assert!(problem.starts_with(&text.display().to_string()), "{problem}");
    assert_eq!(server.asked().len(), 1);
}

#[test]
fn answers_come_in_the_order_of_requests_and_no_more_at_once_than_allowed() {
    // The later a request, the sooner its answer.
    let server = Server::scripted(|asked| {
        let index: u64 = asked.text().rsplit(' ').next()?.parse().ok()?;
        Some(Act::Slow(Duration::from_millis(60 - 5 * index)))
    });
    let judge = open(at_once(3, settings(server.url())));
    let expected: Vec<String> = (0..12).map(|index| format!("question {index}")).collect();
    assert_eq!(texts(&judge, &numbered(12)), expected);
    assert_eq!(server.most_at_once(), 3);
    assert!(judge.ask(&[]).unwrap().is_empty());
}

#[test]
fn nothing_is_asked_twice() {
    let (server, folder) = (Server::start([]), tempdir().unwrap());
    let judge = open(cached(server.url(), folder.path()));
    let mut requests = numbered(4);
    requests.extend(numbered(2));
    let first = texts(&judge, &requests);
    assert_eq!(server.asked().len(), 4);
    assert_eq!(
        judge.spent(),
        Spent { answered: 4, cached: 2, prompt_tokens: 28, completion_tokens: 12, ..Spent::default() }
    );

    // Another process, another key, and five new requests.
    let later = Judge::with_key(cached(server.url(), folder.path()), None).unwrap();
    assert_eq!(texts(&later, &requests), first);
    assert_eq!(later.spent(), Spent { cached: 6, ..Spent::default() });
    texts(&later, &numbered(9));
    assert_eq!(server.asked().len(), 9);
    let distinct: HashSet<String> = server.asked().iter().map(|asked| asked.text()).collect();
    assert_eq!(distinct.len(), 9);
}

#[test]
fn what_determines_an_answer_is_asked_anew_when_it_changes() {
    let (server, folder) = (Server::start([]), tempdir().unwrap());
    let base = cached(server.url(), folder.path());
    let changed = [
        base.clone(),
        JudgeSettings { model: "other".to_owned(), ..base.clone() },
        JudgeSettings { temperature: Some(0.5), ..base.clone() },
        JudgeSettings { temperature: None, ..base.clone() },
        JudgeSettings { limit: TokenLimit::MaxTokens(7), ..base.clone() },
        JudgeSettings { limit: TokenLimit::MaxCompletionTokens(7), ..base.clone() },
        JudgeSettings { url: server.url().replace("/v1", "/v2"), ..base.clone() },
    ];
    for (index, settings) in changed.into_iter().enumerate() {
        texts(&open(settings), &asks(["a"]));
        assert_eq!(server.asked().len(), index + 1);
    }
    let patient = JudgeSettings { retries: 1, timeout: Duration::from_secs(9), price: None, ..base };
    texts(&open(at_once(2, patient)), &asks(["a"]));
    assert_eq!(server.asked().len(), 7, "how it is asked does not matter");
}

#[test]
fn a_damaged_answer_is_noticed_and_asked_again() {
    let (server, folder) = (Server::start([]), tempdir().unwrap());
    texts(&open(cached(server.url(), folder.path())), &asks(["the answer"]));
    let file = fs::read_dir(folder.path()).unwrap().next().unwrap().unwrap().path();
    let whole = fs::read_to_string(&file).unwrap();
    let changed = whole.replace("the answer", "the ansver");
    assert_ne!(whole, changed);
    let damages = [whole[..whole.len() / 2].to_owned(), String::new(), changed, "{}".to_owned()];
    for (index, damage) in damages.iter().enumerate() {
        fs::write(&file, damage).unwrap();
        let judge = open(cached(server.url(), folder.path()));
        assert_eq!(texts(&judge, &asks(["the answer"])), ["the answer"]);
        assert_eq!((judge.spent().damaged, judge.spent().answered, server.asked().len()), (1, 1, index + 2));
        assert_eq!(fs::read_to_string(&file).unwrap(), whole, "it is mended");
    }
    // A file under the name of another request is damage too.
    texts(&open(cached(server.url(), folder.path())), &asks(["another"]));
    let other =
        fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().path()).find(|path| *path != file).unwrap();
    fs::copy(&file, &other).unwrap();
    assert_eq!(texts(&open(cached(server.url(), folder.path())), &asks(["another"])), ["another"]);
}

#[test]
fn the_key_is_neither_kept_nor_shown() {
    let echo = format!("{{\"error\": {{\"message\": \"wrong key {KEY}\"}}}}");
    let (server, folder) = (Server::start([Act::Echo, Act::Say("401 Unauthorized", "", echo)]), tempdir().unwrap());
    let judge = open(cached(server.url(), folder.path()));
    texts(&judge, &asks(["a"]));
    for entry in fs::read_dir(folder.path()).unwrap() {
        assert!(!fs::read_to_string(entry.unwrap().path()).unwrap().contains(KEY));
    }
    let problem = judge.ask(&asks(["b"])).unwrap_err();
    assert!(problem.to_string().contains("wrong key …"), "{problem}");
    assert!(!format!("{problem:?} {:?}", mdpo_measure::judge::Secret::new(KEY)).contains(KEY));
}

#[test]
fn a_cache_that_cannot_be_written_to_is_told_before_anything_is_asked() {
    let folder = tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    let problem = Judge::with_key(cached("http://localhost:1", &file.join("judged")), None).err().unwrap().to_string();
    assert!(problem.contains("file/judged"), "{problem}");
}

#[test]
fn cost_counts_what_was_paid_for_and_nothing_else() {
    let unusable = "{\"choices\": [], \"usage\": {\"prompt_tokens\": 100, \"completion_tokens\": 10}}";
    let unmetered = "{\"choices\": [{\"message\": {\"content\": \"yes\"}}]}";
    let acts = [Act::Say("200 OK", "", unusable.to_owned()), Act::Echo, Act::Say("200 OK", "", unmetered.to_owned())];
    let (server, folder) = (Server::start(acts), tempdir().unwrap());
    let price = Price { prompt: 2.0, completion: 10.0 };
    let judge = open(at_once(1, JudgeSettings { price: Some(price), ..cached(server.url(), folder.path()) }));
    texts(&judge, &asks(["a", "b", "a"]));
    let spent = judge.spent();
    let expected = Spent {
        answered: 2,
        cached: 1,
        retries: 1,
        unmetered: 1,
        prompt_tokens: 107,
        completion_tokens: 13,
        ..Spent::default()
    };
    assert_eq!(spent, expected);
    assert!((spent.cost(price) - (107.0 * 2.0 + 13.0 * 10.0) / 1e6).abs() < 1e-12);
}

const CHILD: &str = "MDPO_TEST_JUDGE";

/// Runs a test of this file again in a process with other variables: those of this one are not changed while threads read them.
fn with_environment(test: &str, url: &str, variables: &[(&str, String)]) {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args([&format!("answers::{test}"), "--exact", "--nocapture"]).env(CHILD, url);
    for name in
        ["ALL_PROXY", "all_proxy", "HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "NO_PROXY", "no_proxy"]
    {
        command.env_remove(name);
    }
    let output = command.envs(variables.iter().map(|(name, value)| (name, value))).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}

#[test]
fn the_key_comes_from_the_environment() {
    if let Ok(url) = std::env::var(CHILD) {
        texts(&Judge::open(settings(&url)).unwrap(), &asks(["a"]));
        let named = |name: &str| Judge::open(JudgeSettings { key_env: Some(name.to_owned()), ..settings(&url) });
        texts(&named("MDPO_TEST_KEY").unwrap(), &asks(["b"]));
        let problem = named("MDPO_TEST_NO_KEY").err().unwrap().to_string();
        assert!(problem.starts_with("`MDPO_TEST_NO_KEY`: ") && problem.contains("--judge-key-env"), "{problem}");
        let problem = named("MDPO_TEST_BAD_KEY").err().unwrap().to_string();
        assert!(!problem.contains("hidden"), "{problem}");
        return;
    }
    let server = Server::start([]);
    let variables = [(DEFAULT_KEY_ENV, "first\n"), ("MDPO_TEST_KEY", "second"), ("MDPO_TEST_BAD_KEY", "hidden\nkey")];
    with_environment(
        "the_key_comes_from_the_environment",
        &server.url(),
        &variables.map(|(name, value)| (name, value.to_owned())),
    );
    let keys: Vec<String> =
        server.asked().iter().map(|asked| asked.header("authorization").unwrap().to_owned()).collect();
    assert_eq!(keys, ["Bearer first", "Bearer second"]);
}

#[test]
fn a_proxy_is_used_for_other_machines_only() {
    if let Ok(url) = std::env::var(CHILD) {
        texts(&open(settings(&url)), &asks(["a"]));
        let elsewhere = JudgeSettings { retries: 0, ..settings("http://judge.invalid/v1") };
        let problem = open(elsewhere).ask(&asks(["b"])).unwrap_err().to_string();
        assert!(problem.contains("cannot be reached"), "{problem}");
        return;
    }
    let (server, proxy) =
        (Server::start([]), Server::scripted(|_| Some(Act::Say("502 Bad Gateway", "", String::new()))));
    let variables =
        ["http_proxy", "https_proxy", "ALL_PROXY"].map(|name| (name, format!("http://127.0.0.1:{}", proxy.port())));
    with_environment("a_proxy_is_used_for_other_machines_only", &server.url(), &variables);
    assert_eq!(server.asked().len(), 1);
    let lines: Vec<String> = proxy.asked().into_iter().map(|asked| asked.line).collect();
    assert_eq!(lines, ["CONNECT judge.invalid:80 HTTP/1.1"]);
}
