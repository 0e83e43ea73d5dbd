//! As much of HTTP/1.1 as a file browser needs (RFC 9110, RFC 9112): one request a connection.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, percent_encode};

/// Longest request line and header fields, in bytes.
const MAX_HEAD: usize = 16 << 10;
/// What stands in a path as it is.
const PLAIN: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~').remove(b'/');
/// The same in a name, where a slash would end it. No volume has such a name unless it is damaged.
const NAME: &AsciiSet = &PLAIN.add(b'/');

/// What is done.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Method {
    Get,
    Head,
}

/// What was asked for.
pub struct Request {
    pub method: Method,
    /// Decoded; any bytes.
    pub path: Vec<u8>,
    pub range: Option<String>,
    pub if_range: Option<String>,
}

/// The bytes of a file that were asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Range {
    All,
    Part {
        first: u64,
        len: u64,
    },
    /// Beyond the end.
    None,
}

/// What is answered.
pub struct Response {
    status: &'static str,
    headers: Vec<(&'static str, String)>,
    body: Box<dyn Read>,
}

/// Bounds how long a client can keep a thread waiting.
pub fn set_limits(stream: &TcpStream) -> io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    stream.set_write_timeout(Some(Duration::from_secs(30)))
}

/// The request, or the status of one that is not understood.
pub fn read_request(mut stream: &TcpStream) -> io::Result<Result<Request, &'static str>> {
    let (mut head, mut more) = (Vec::new(), [0; 4096]);
    loop {
        let len = stream.read(&mut more)?;
        head.extend_from_slice(&more[..len]);
        let mut headers = [httparse::EMPTY_HEADER; 64];
        let mut parsed = httparse::Request::new(&mut headers);
        match parsed.parse(&head) {
            Ok(httparse::Status::Complete(_)) => return Ok(understand(&parsed)),
            Ok(httparse::Status::Partial) if len > 0 && head.len() < MAX_HEAD => {}
            Ok(httparse::Status::Partial) if len > 0 => {
                return Ok(Err("431 Request Header Fields Too Large"));
            }
            _ => return Ok(Err("400 Bad Request")),
        }
    }
}

fn understand(parsed: &httparse::Request<'_, '_>) -> Result<Request, &'static str> {
    let method = match parsed.method {
        Some("GET") => Method::Get,
        Some("HEAD") => Method::Head,
        _ => return Err("405 Method Not Allowed"),
    };
    let target = parsed.path.unwrap_or_default();
    let path =
        target.split(['?', '#']).next().filter(|path| path.starts_with('/')).ok_or("400 Bad Request")?;
    let header = |name: &str| {
        let found = parsed.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name))?;
        String::from_utf8(found.value.to_vec()).ok()
    };
    Ok(Request {
        method,
        path: percent_decode_str(path).collect(),
        range: header("Range"),
        if_range: header("If-Range"),
    })
}

/// What a `Range` field asks of a file of `size` bytes. One that is malformed, or asks for several ranges, is ignored,
/// which RFC 9110 (14.2) allows.
pub fn range(field: Option<&str>, size: u64) -> Range {
    let parts =
        field.and_then(|field| field.trim().strip_prefix("bytes=")).and_then(|spec| spec.split_once('-'));
    let Some((first, last)) = parts else { return Range::All };
    let number =
        |text: &str| text.bytes().all(|c| c.is_ascii_digit()).then(|| text.parse().unwrap_or(u64::MAX));
    let (first, end) = match (first.trim(), last.trim()) {
        ("", "") => return Range::All,
        ("", suffix) => match number(suffix) {
            Some(len) => (size.saturating_sub(len), size),
            None => return Range::All,
        },
        (first, "") => match number(first) {
            Some(first) => (first, size),
            None => return Range::All,
        },
        (first, last) => match (number(first), number(last)) {
            (Some(first), Some(last)) if first <= last => (first, last.saturating_add(1).min(size)),
            _ => return Range::All,
        },
    };
    match end.checked_sub(first) {
        Some(len) if len > 0 => Range::Part { first, len },
        _ => Range::None,
    }
}

impl Response {
    pub fn new(status: &'static str, kind: &str, len: u64, body: Box<dyn Read>) -> Response {
        let headers = vec![("Content-Type", kind.to_owned()), ("Content-Length", len.to_string())];
        Response { status, headers, body }
    }

    /// A page that says no more than the status.
    pub fn text(status: &'static str) -> Response {
        let text = format!("{status}\n");
        let response =
            Response::new(status, "text/plain", text.len() as u64, Box::new(io::Cursor::new(text)));
        if status.starts_with("405") { response.with("Allow", "GET, HEAD".to_owned()) } else { response }
    }

    pub fn page(html: String) -> Response {
        Response::new(
            "200 OK",
            "text/html; charset=utf-8",
            html.len() as u64,
            Box::new(io::Cursor::new(html)),
        )
    }

    pub fn with(mut self, name: &'static str, value: String) -> Response {
        self.headers.push((name, value));
        self
    }

    /// Sends it and ends the connection. A file that fails meanwhile ends it early, which the length shows.
    pub fn send(mut self, mut stream: &TcpStream, method: Method) -> io::Result<()> {
        let mut head = format!("HTTP/1.1 {}\r\nConnection: close\r\n", self.status);
        // Nothing in a volume is a page of this site.
        head += "X-Content-Type-Options: nosniff\r\nContent-Security-Policy: sandbox\r\n";
        for (name, value) in &self.headers {
            head += &format!("{name}: {value}\r\n");
        }
        stream.write_all((head + "\r\n").as_bytes())?;
        if method == Method::Get {
            let mut buffer = io::BufWriter::with_capacity(1 << 18, stream);
            io::copy(&mut self.body, &mut buffer)?;
            buffer.flush()?;
        }
        stream.shutdown(Shutdown::Write)?;
        // What the client still sends is taken, or the kernel would reset the connection and lose the answer.
        io::copy(&mut stream.take(1 << 20), &mut io::sink()).map(drop)
    }
}

/// A path as it stands in a URL.
pub fn encode_path(path: &[u8]) -> String {
    percent_encode(path, PLAIN).to_string()
}

/// A name as it stands in a relative link.
pub fn encode_name(name: &[u8]) -> String {
    percent_encode(name, NAME).to_string()
}
