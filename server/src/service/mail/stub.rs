//! A mail server for tests that does what it is told: each verb's answers are scripted, the last one stays.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

use crate::config::Config;

/// Instead of an answer: the connection is closed.
pub const CLOSE: &str = "close";
/// Instead of an answer: nothing, for ever.
pub const HANG: &str = "hang";

#[derive(Default)]
struct State {
    answers: HashMap<&'static str, VecDeque<&'static str>>,
    /// Every line that was said to it, but for messages.
    lines: Vec<String>,
    messages: Vec<String>,
}

/// A running one; it ends with its test's runtime.
pub struct Stub {
    pub port: u16,
    state: Arc<Mutex<State>>,
}

impl Stub {
    /// One that takes everything, but for what `script` says: a verb, or `greeting` or `message`, and the answers to it in
    /// turn, of which the last one is repeated.
    pub async fn start(script: &[(&'static str, &[&'static str])]) -> Stub {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::new(Mutex::new(State {
            answers: script
                .iter()
                .map(|(verb, answers)| (*verb, answers.iter().copied().collect()))
                .collect(),
            ..State::default()
        }));
        let shared = state.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, shared.clone()));
            }
        });
        Stub { port, state }
    }

    /// The messages that it has taken.
    pub fn messages(&self) -> Vec<String> {
        self.state.lock().messages.clone()
    }

    /// Whether a line that begins like this was said to it.
    pub fn heard(&self, begin: &str) -> bool {
        self.state.lock().lines.iter().any(|line| line.starts_with(begin))
    }

    /// Its URL with credentials and options.
    pub fn url(&self, user: &str, options: &str) -> String {
        format!("smtp://{user}127.0.0.1:{}{options}", self.port)
    }
}

async fn serve(stream: TcpStream, state: Arc<Mutex<State>>) {
    let (reader, mut writer) = stream.into_split();
    let mut lines = BufReader::new(reader).lines();
    let answer = |verb: &str, usual: &'static str| {
        let mut state = state.lock();
        let Some(answers) = state.answers.get_mut(verb) else {
            return usual;
        };
        match answers.len() {
            0 => usual,
            1 => answers[0],
            _ => answers.pop_front().unwrap(),
        }
    };
    let mut next = answer("greeting", "220 stub");
    loop {
        match next {
            CLOSE => return,
            HANG => std::future::pending().await,
            text => {
                if writer.write_all(format!("{text}\r\n").as_bytes()).await.is_err() {
                    return;
                }
            }
        }
        let Ok(Some(line)) = lines.next_line().await else {
            return;
        };
        let verb = line
            .split([' ', ':'])
            .next()
            .unwrap_or_default()
            .to_ascii_uppercase();
        state.lock().lines.push(line);
        next = match verb.as_str() {
            "EHLO" => answer("EHLO", "250-stub\r\n250-8BITMIME\r\n250 AUTH PLAIN LOGIN"),
            "AUTH" => answer("AUTH", "235 welcome"),
            "DATA" => {
                let go_on = answer("DATA", "354 go on");
                if go_on.starts_with("354") {
                    if writer.write_all(format!("{go_on}\r\n").as_bytes()).await.is_err() {
                        return;
                    }
                    let mut message = String::new();
                    while let Ok(Some(line)) = lines.next_line().await {
                        if line == "." {
                            break;
                        }
                        message.push_str(&line);
                        message.push('\n');
                    }
                    let taken = answer("message", "250 taken");
                    if taken.starts_with("250") {
                        state.lock().messages.push(message);
                    }
                    taken
                } else {
                    go_on
                }
            }
            "QUIT" => "221 bye",
            other => answer(other, "250 ok"),
        };
    }
}

/// Settings with a mail server.
pub fn config(url: &str) -> Config {
    let vars = [
        ("PDS_JWT_SECRET", "0123456789abcdef0123"),
        ("PDS_ADMIN_PASSWORD", "hunter2hunter2"),
        (
            "PDS_PLC_ROTATION_KEY_K256_PRIVATE_KEY_HEX",
            "1111111111111111111111111111111111111111111111111111111111111111",
        ),
        ("PDS_HOSTNAME", "pds.example.com"),
        ("PDS_EMAIL_SMTP_URL", url),
        ("PDS_EMAIL_FROM_ADDRESS", "noreply@pds.example.com"),
    ];
    Config::from_vars(vars.map(|(name, value)| (name.to_owned(), value.to_owned())))
        .unwrap()
        .0
}
