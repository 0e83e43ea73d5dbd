//! Serves a volume over HTTP, for reading, to whoever connects: `http_browser IMAGE [ADDRESS [UID:GID]]`.
//!
//! Directories are listed, files can be read from any byte on (`Range`). Who asks has the rights of a user, nobody
//! (65534:65534) unless told otherwise: what that user may not read in the volume is forbidden here.

mod http;
mod volume;

use std::error::Error;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;

use rext4::{Credentials, FileType, Filesystem, Node, OpenFlags, OpenOptions};

use http::{Method, Range, Request, Response};
use volume::Failure;

/// Connections that are served at a time.
const THREADS: usize = 8;

fn main() -> Result<(), Box<dyn Error>> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [image, rest @ ..] = &words[..] else {
        return Err("usage: http_browser IMAGE [ADDRESS [UID:GID]]".into());
    };
    let address = rest.first().map_or("127.0.0.1:8080", String::as_str);
    let (uid, gid) = rest.get(1).map_or("65534:65534", String::as_str).split_once(':').ok_or("UID:GID")?;
    let user = Credentials { uid: uid.parse()?, gid: gid.parse()?, ..Credentials::default() };
    let fs = OpenOptions::new().read_only(true).open(image)?;
    let listener = TcpListener::bind(address)?;
    println!("http://{}/", listener.local_addr()?);
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                for stream in listener.incoming() {
                    if let Err(error) = stream.and_then(|stream| serve(&fs, &user, &stream)) {
                        eprintln!("{error}");
                    }
                }
            });
        }
    });
    Ok(())
}

/// Answers the one request of a connection.
fn serve(fs: &Arc<Filesystem>, user: &Credentials, stream: &TcpStream) -> io::Result<()> {
    http::set_limits(stream)?;
    let (request, response) = match http::read_request(stream)? {
        Ok(request) => {
            let response = respond(fs, user, &request).unwrap_or_else(|failure| failure.response());
            (request.method, response)
        }
        Err(status) => (Method::Get, Response::text(status)),
    };
    response.send(stream, request)
}

fn respond(fs: &Arc<Filesystem>, user: &Credentials, request: &Request) -> Result<Response, Failure> {
    let node = volume::find(fs, user, &request.path)?;
    match node.kind() {
        FileType::Directory if !request.path.ends_with(b"/") => {
            // Relative links in the listing need the slash. Two slashes at the start would name another host.
            let location = format!("/{}/", http::encode_path(&request.path).trim_start_matches('/'));
            Ok(Response::text("301 Moved Permanently").with("Location", location))
        }
        FileType::Directory => {
            let page = volume::listing(&node.into_dir()?, user, &request.path)?;
            Ok(Response::page(page))
        }
        FileType::Regular => respond_file(&node, user, request),
        _ => Err(Failure::Forbidden),
    }
}

fn respond_file(node: &Node, user: &Credentials, request: &Request) -> Result<Response, Failure> {
    node.check_access(user, volume::READ)?;
    let attr = node.attributes()?;
    // A volume that is read only does not change while it is served, but between two runs of the server.
    let tag = format!("\"{:x}-{:x}-{:x}-{:x}\"", attr.ino.get(), attr.generation, attr.mtime.sec, attr.size);
    let range = match (&request.if_range, request.method) {
        (Some(known), _) if *known != tag => Range::All,
        (_, Method::Head) => Range::All,
        _ => http::range(request.range.as_deref(), attr.size),
    };
    let (status, first, len) = match range {
        Range::All => ("200 OK", 0, attr.size),
        Range::Part { first, len } => ("206 Partial Content", first, len),
        Range::None => {
            let all = format!("bytes */{}", attr.size);
            return Ok(Response::text("416 Range Not Satisfiable").with("Content-Range", all));
        }
    };
    let mut file = node.open(OpenFlags::default())?;
    file.seek(SeekFrom::Start(first)).map_err(Failure::Io)?;
    let mut response = Response::new(status, "application/octet-stream", len, Box::new(file.take(len)))
        .with("Accept-Ranges", "bytes".to_owned())
        .with("ETag", tag);
    if let Range::Part { first, len } = range {
        response = response.with("Content-Range", format!("bytes {first}-{}/{}", first + len - 1, attr.size));
    }
    Ok(response)
}
