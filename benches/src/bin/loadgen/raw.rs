//! The least HTTP/1.1 client that does: one connection, one request at a time, bodies counted and dropped.
//!
//! Where client and server share a machine, what the client spends is missing to the server; a general client spends more
//! on a small request than the server does.

use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::api::ApiError;
use crate::load::Caller;

/// Most bytes of headers.
const MAX_HEAD_BYTES: usize = 64 << 10;
/// Bytes asked for in one read.
const READ_BYTES: usize = 256 << 10;

/// One connection, made at the first request and again after an error.
pub struct Connection {
    authority: Arc<str>,
    stream: Option<TcpStream>,
    buffer: Vec<u8>,
}

/// What one request asks for.
#[derive(Clone, Debug, Default)]
pub struct Asked {
    /// Path and query.
    pub target: String,
    /// Further header lines, each with its line end.
    pub headers: String,
    /// The body of a POST; a GET without.
    pub body: Option<Arc<[u8]>>,
    /// What comes before the body's shared part.
    pub stamp: Vec<u8>,
}

impl Connection {
    /// A connection to the server at `base`, such as `http://localhost:2583`.
    ///
    /// # Errors
    /// It is no `http://` URL.
    pub fn new(base: &str) -> Result<Connection, ApiError> {
        let authority = base
            .strip_prefix("http://")
            .ok_or_else(|| ApiError::Unexpected("this scenario speaks http:// only".to_owned()))?;
        Ok(Connection {
            authority: authority.into(),
            stream: None,
            buffer: Vec::new(),
        })
    }

    /// Sends one request and gives the bytes of its answer's body.
    ///
    /// # Errors
    /// No whole answer, or another status than 200.
    pub async fn send(&mut self, asked: &Asked) -> Result<u64, ApiError> {
        let mut stream = match self.stream.take() {
            Some(stream) => stream,
            None => self.connect().await?,
        };
        let outcome = self.exchange(&mut stream, asked).await;
        // After an error nobody knows where in the stream the next answer would begin.
        if outcome.is_ok() {
            self.stream = Some(stream);
        }
        outcome
    }

    async fn connect(&self) -> Result<TcpStream, ApiError> {
        let host = &*self.authority;
        let address = if host.contains(':') {
            host.to_owned()
        } else {
            format!("{host}:80")
        };
        let stream = TcpStream::connect(address).await.map_err(transport)?;
        stream.set_nodelay(true).map_err(transport)?;
        Ok(stream)
    }

    async fn exchange(&mut self, stream: &mut TcpStream, asked: &Asked) -> Result<u64, ApiError> {
        let (method, length) = match &asked.body {
            None => ("GET", String::new()),
            Some(body) => (
                "POST",
                format!("content-length: {}\r\n", body.len() + asked.stamp.len()),
            ),
        };
        let head = format!(
            "{method} {} HTTP/1.1\r\nhost: {}\r\n{length}{}\r\n",
            asked.target, self.authority, asked.headers
        );
        stream.write_all(head.as_bytes()).await.map_err(transport)?;
        if let Some(body) = &asked.body {
            stream.write_all(&asked.stamp).await.map_err(transport)?;
            stream.write_all(body).await.map_err(transport)?;
        }
        self.buffer.clear();
        let head_end = loop {
            if let Some(end) = find(&self.buffer, b"\r\n\r\n") {
                break end + 4;
            }
            if self.buffer.len() > MAX_HEAD_BYTES {
                return Err(ApiError::Unexpected("endless headers".to_owned()));
            }
            self.read(stream).await?;
        };
        let head = Head::parse(self.buffer.get(..head_end).unwrap_or_default())?;
        self.buffer.drain(..head_end);
        let size = match head.length {
            Some(length) => self.skip(stream, length).await?,
            None => self.skip_chunks(stream).await?,
        };
        if head.status == 200 {
            Ok(size)
        } else {
            Err(ApiError::Unexpected(format!("status {}", head.status)))
        }
    }

    /// Passes over `length` bytes.
    async fn skip(&mut self, stream: &mut TcpStream, length: u64) -> Result<u64, ApiError> {
        let mut left = length;
        loop {
            let here = usize::try_from(left).unwrap_or(usize::MAX).min(self.buffer.len());
            self.buffer.drain(..here);
            left -= here as u64;
            if left == 0 {
                return Ok(length);
            }
            self.read(stream).await?;
        }
    }

    async fn skip_chunks(&mut self, stream: &mut TcpStream) -> Result<u64, ApiError> {
        let mut size = 0;
        loop {
            let line_end = loop {
                match find(&self.buffer, b"\r\n") {
                    Some(end) => break end,
                    None => self.read(stream).await?,
                }
            };
            let line = self.buffer.get(..line_end).unwrap_or_default();
            let length = std::str::from_utf8(line)
                .ok()
                .and_then(|line| u64::from_str_radix(line.trim(), 16).ok())
                .ok_or_else(|| ApiError::Unexpected("a chunk without a length".to_owned()))?;
            self.buffer.drain(..line_end + 2);
            self.skip(stream, length + 2).await?;
            size += length;
            if length == 0 {
                return Ok(size);
            }
        }
    }

    async fn read(&mut self, stream: &mut TcpStream) -> Result<(), ApiError> {
        self.buffer.reserve(READ_BYTES);
        match stream.read_buf(&mut self.buffer).await.map_err(transport)? {
            0 => Err(ApiError::Transport("the server closed the connection".to_owned())),
            _ => Ok(()),
        }
    }
}

fn transport(error: std::io::Error) -> ApiError {
    ApiError::Transport(error.to_string())
}

fn find(bytes: &[u8], needle: &[u8]) -> Option<usize> {
    bytes.windows(needle.len()).position(|window| window == needle)
}

/// What must be known of an answer's head.
#[derive(Debug, PartialEq, Eq)]
struct Head {
    status: u16,
    /// `None` when it comes in chunks.
    length: Option<u64>,
}

impl Head {
    fn parse(bytes: &[u8]) -> Result<Head, ApiError> {
        let unexpected = || ApiError::Unexpected("an answer that is no HTTP/1.1".to_owned());
        let text = std::str::from_utf8(bytes).map_err(|_| unexpected())?;
        let mut lines = text.split("\r\n");
        let status = lines.next().unwrap_or_default();
        let status = status.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3));
        let status = status.and_then(|code| code.parse().ok()).ok_or_else(unexpected)?;
        let mut length = None;
        for line in lines {
            let (name, value) = line.split_once(':').unwrap_or_default();
            if name.eq_ignore_ascii_case("content-length") {
                length = Some(value.trim().parse().map_err(|_| unexpected())?);
            }
        }
        Ok(Head { status, length })
    }
}

/// One connection's part of a closed loop: what the nth request asks for, sent over a [`Connection`].
pub struct Asking<F> {
    connection: Connection,
    ask: F,
}

impl<F> Asking<F> {
    /// Over a connection to `base`.
    ///
    /// # Errors
    /// As [`Connection::new`].
    pub fn new(base: &str, ask: F) -> Result<Asking<F>, ApiError> {
        let connection = Connection::new(base)?;
        Ok(Asking { connection, ask })
    }
}

impl<F: Fn(u64) -> Asked + Send + Sync + 'static> Caller for Asking<F> {
    async fn call(&mut self, n: u64) -> Result<u64, ApiError> {
        let asked = (self.ask)(n);
        self.connection.send(&asked).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    #[tokio::test]
    async fn bodies_with_a_length_and_in_chunks_are_counted_and_the_connection_is_kept() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            for answer in [
                "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
                "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n1\r\nd\r\n0\r\n\r\n",
                "HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n",
            ] {
                let mut request = [0; 1024];
                let read = stream.read(&mut request).await.unwrap();
                assert!(request[..read].starts_with(b"GET /x HTTP/1.1\r\nhost: 127."));
                for piece in answer.as_bytes().chunks(7) {
                    stream.write_all(piece).await.unwrap();
                }
            }
        });
        let mut connection = Connection::new(&base).unwrap();
        let asked = Asked {
            target: "/x".to_owned(),
            ..Asked::default()
        };
        assert_eq!(connection.send(&asked).await.unwrap(), 5);
        assert_eq!(connection.send(&asked).await.unwrap(), 4);
        assert!(connection.send(&asked).await.is_err());
        server.await.unwrap();
        assert!(Connection::new("https://x").is_err());
    }
}
