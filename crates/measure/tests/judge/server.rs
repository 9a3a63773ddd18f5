//! A judge on loopback that does as it is told, also badly.

use std::{
    collections::VecDeque,
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

/// How one request is met.
#[derive(Debug, Clone)]
pub enum Act {
    /// Says back what the last message asks, as a completion of 7 and 3 tokens.
    Echo,
    /// The same, but not at once.
    Slow(Duration),
    /// A completion with this text and reason to end.
    Completion(&'static str, &'static str),
    /// Status, further headers, body.
    Say(&'static str, &'static str, String),
    /// Promises more than it sends, and hangs up.
    CutBody,
    /// Hangs up without a word.
    HangUp,
    /// Starts an answer and never ends it.
    Drip,
    /// A body of so many bytes.
    Huge(usize),
}

/// A request as it arrived.
#[derive(Debug, Clone)]
pub struct Asked {
    pub line: String,
    pub headers: Vec<(String, String)>,
    pub body: Value,
    pub at: Instant,
}

impl Asked {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    /// The words of the last message.
    pub fn text(&self) -> String {
        let content = &self.body["messages"].as_array().expect("messages").last().expect("a message")["content"];
        content.as_str().map_or_else(|| content.to_string(), str::to_owned)
    }
}

type Script = Box<dyn Fn(&Asked) -> Option<Act> + Send + Sync>;

struct Shared {
    acts: Mutex<VecDeque<Act>>,
    script: Script,
    asked: Mutex<Vec<Asked>>,
    /// Under way now, and at most.
    busy: Mutex<(usize, usize)>,
}

pub struct Server {
    shared: Arc<Shared>,
    port: u16,
}

impl Server {
    /// Meets the first requests with `acts`, one each, and all others with an echo.
    pub fn start(acts: impl IntoIterator<Item = Act>) -> Self {
        Self::listen(acts.into_iter().collect(), Box::new(|_| None))
    }

    /// Meets each request as `script` says, or with an echo.
    pub fn scripted(script: impl Fn(&Asked) -> Option<Act> + Send + Sync + 'static) -> Self {
        Self::listen(VecDeque::new(), Box::new(script))
    }

    fn listen(acts: VecDeque<Act>, script: Script) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port on loopback");
        let port = listener.local_addr().expect("an address").port();
        let shared =
            Arc::new(Shared { acts: Mutex::new(acts), script, asked: Mutex::default(), busy: Mutex::default() });
        let served = Arc::clone(&shared);
        // Ends with the test's process.
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let shared = Arc::clone(&served);
                thread::spawn(move || shared.serve(stream));
            }
        });
        Server { shared, port }
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}/v1", self.port)
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn asked(&self) -> Vec<Asked> {
        self.shared.asked.lock().unwrap().clone()
    }

    pub fn most_at_once(&self) -> usize {
        self.shared.busy.lock().unwrap().1
    }
}

impl Shared {
    fn serve(&self, stream: TcpStream) {
        let mut reader = BufReader::new(stream.try_clone().expect("a second handle"));
        while let Some(asked) = receive(&mut reader) {
            {
                let mut busy = self.busy.lock().unwrap();
                busy.0 += 1;
                busy.1 = busy.1.max(busy.0);
            }
            self.asked.lock().unwrap().push(asked.clone());
            let act = self.acts.lock().unwrap().pop_front().or_else(|| (self.script)(&asked)).unwrap_or(Act::Echo);
            let goes_on = answer(&stream, &asked, &act, || self.busy.lock().unwrap().0 -= 1);
            if goes_on.is_err() {
                return;
            }
        }
    }
}

fn receive(reader: &mut BufReader<TcpStream>) -> Option<Asked> {
    let mut line = String::new();
    reader.read_line(&mut line).ok().filter(|read| *read > 0)?;
    let mut headers = Vec::new();
    loop {
        let mut header = String::new();
        reader.read_line(&mut header).ok().filter(|read| *read > 0)?;
        match header.trim_end().split_once(": ") {
            Some((name, value)) => headers.push((name.to_owned(), value.to_owned())),
            None => break,
        }
    }
    let length = headers.iter().find(|(name, _)| name.eq_ignore_ascii_case("content-length"));
    let length = length.map_or(0, |(_, value)| value.parse().expect("a length"));
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    let body = if body.is_empty() { Value::Null } else { serde_json::from_slice(&body).expect("a body of JSON") };
    Some(Asked { line: line.trim_end().to_owned(), headers, body, at: Instant::now() })
}

/// `Err` when the connection is to be closed; `done` is called before the last byte is sent.
fn answer(mut stream: &TcpStream, asked: &Asked, act: &Act, done: impl FnOnce()) -> std::io::Result<()> {
    let closed = || Err(std::io::ErrorKind::ConnectionAborted.into());
    let (status, headers, body) = match act {
        Act::Echo => ("200 OK", "", completion(&asked.text(), "stop")),
        Act::Slow(time) => {
            thread::sleep(*time);
            ("200 OK", "", completion(&asked.text(), "stop"))
        }
        Act::Completion(text, end) => ("200 OK", "", completion(text, end)),
        Act::Say(status, headers, body) => (*status, *headers, body.clone()),
        Act::CutBody => {
            done();
            stream.write_all(
                b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n{\"choices\": [{\"message\": {\"content\": \"Ra",
            )?;
            return closed();
        }
        Act::HangUp => {
            done();
            return closed();
        }
        Act::Drip => {
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n")?;
            for _ in 0..600 {
                if stream.write_all(b" ").is_err() {
                    break;
                }
                thread::sleep(Duration::from_millis(50));
            }
            done();
            return closed();
        }
        Act::Huge(size) => ("200 OK", "", "x".repeat(*size)),
    };
    done();
    write!(stream, "HTTP/1.1 {status}\r\n{headers}Content-Length: {}\r\n\r\n{body}", body.len())?;
    stream.flush()
}

pub fn completion(text: &str, end: &str) -> String {
    json!({
        "id": "c-1", "object": "chat.completion", "model": "judge-2024-01-01",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": end}],
        "usage": {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10},
    })
    .to_string()
}
