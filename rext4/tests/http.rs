//! The HTTP browser among the examples: what a client gets of a volume, and what it does not get.

mod support;

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::path::Path;
use std::process::{Child, Stdio};

use rext4::{Credentials, FileType, Filesystem, Posix, mkfs};
use support::{assert_clean, example, folder, give};

const NAME: &[u8] = b"a b%2f&<i>\"'#?:\xff\n";
const NAME_IN_URL: &str = "a%20b%252f%26%3Ci%3E%22%27%23%3F%3A%FF%0A";

struct Server {
    child: Child,
    address: String,
}

impl Server {
    fn start(image: &Path, user: &str, folder: &Path) -> Server {
        let mut command = example("http_browser", folder);
        let mut child =
            command.arg(image).args(["127.0.0.1:0", user]).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.trim().strip_prefix("http://").and_then(|line| line.strip_suffix('/'));
        Server { address: address.expect("an address").to_owned(), child }
    }

    /// Sends bytes and takes all that comes: status, header fields, body.
    fn send(&self, bytes: &[u8]) -> Answer {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        stream.write_all(bytes).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        let end = answer.windows(4).position(|four| four == b"\r\n\r\n").expect("a complete head");
        let head = String::from_utf8(answer[..end].to_vec()).unwrap();
        let (status, head) = head.split_once("\r\n").unwrap();
        let status = status.strip_prefix("HTTP/1.1 ").unwrap()[..3].parse().unwrap();
        Answer { status, head: head.to_owned(), body: answer[end + 4..].to_vec() }
    }

    fn ask(&self, method: &str, path: &str, fields: &str) -> Answer {
        self.send(format!("{method} {path} HTTP/1.1\r\nHost: test\r\n{fields}\r\n").as_bytes())
    }

    fn get(&self, path: &str) -> Answer {
        self.ask("GET", path, "")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

struct Answer {
    status: u16,
    head: String,
    body: Vec<u8>,
}

impl Answer {
    fn field(&self, name: &str) -> Option<&str> {
        self.head
            .lines()
            .find_map(|line| line.split_once(": ").filter(|(key, _)| *key == name))
            .map(|(_, v)| v)
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

fn content() -> Vec<u8> {
    (0..300_000_u32).flat_map(u32::to_le_bytes).collect()
}

fn fill(image: &Path) {
    mkfs::format_file(image, 32 << 20, &mkfs::Options::default()).unwrap();
    let fs = Filesystem::open(image).unwrap();
    fs.create_dir_all("dir/sub").unwrap();
    fs.write("dir/large", content()).unwrap();
    fs.write("dir/empty", "").unwrap();
    fs.root().unwrap().create(NAME, 0o644).unwrap().write_all_at(b"odd", 0).unwrap();
    fs.write("secret", "s").unwrap();
    fs.set_permissions("secret", 0o640).unwrap();
    fs.chown("secret", None, Some(4242)).unwrap();
    fs.create_dir_all("private/below").unwrap();
    fs.write("private/file", "p").unwrap();
    fs.set_permissions("private", 0o700).unwrap();
    // May be searched, not listed.
    fs.create_dir("closed").unwrap();
    fs.write("closed/file", "c").unwrap();
    fs.set_permissions("closed", 0o711).unwrap();
    for (target, link) in [
        ("/dir/large", "absolute"),
        ("../dir/./large", "dir/relative"),
        ("../../../../dir", "up"),
        ("/etc/passwd", "host"),
        ("private/file", "through"),
        ("loop", "loop"),
        ("dir/", "slash"),
    ] {
        fs.symlink(target, link).unwrap();
    }
    let fifo = FileType::Fifo.mode_bits() | 0o666;
    fs.root().unwrap().mknod_as(&Credentials::root(), "fifo", fifo, (0, 0)).unwrap();
    assert!(matches!(fs.lookup("host").unwrap_err(), rext4::Error::Posix(Posix::NotFound)));
    fs.close().unwrap();
    give(image);
}

#[test]
fn a_volume_is_browsed_over_http() {
    let folder = folder();
    let image = folder.path().join("disk.img");
    fill(&image);
    let before = std::fs::read(&image).unwrap();
    let server = Server::start(&image, "65534:65534", folder.path());
    let large = content();

    // Listings, links and names of any bytes.
    let root = server.get("/");
    assert_eq!((root.status, root.field("Content-Type")), (200, Some("text/html; charset=utf-8")));
    let text = root.text();
    for link in ["./dir/", "./secret", "./lost%2Bfound/", &format!("./{NAME_IN_URL}")] {
        assert!(text.contains(&format!("<a href=\"{link}\">")), "{link}: {text}");
    }
    assert!(text.contains("a b%2f&amp;&lt;i&gt;&quot;'#?:") && !text.contains("<i>"), "{text}");
    assert_eq!(server.get(&format!("/{NAME_IN_URL}")).body, b"odd");
    let listing = server.get("/dir/").text();
    assert!(listing.contains("large</a></td><td>1200000<") && listing.contains("./sub/"), "{listing}");
    let moved = server.get("//dir");
    assert_eq!((moved.status, moved.field("Location")), (301, Some("/dir/")));
    for path in [
        "/absolute",
        "/dir/relative",
        "/up/large",
        "/dir/sub/../large",
        "/%64ir%2flarge?x=/y",
        "/slash/large",
    ] {
        let answer = server.get(path);
        assert!(answer.status == 200 && answer.body == large, "{path}: {}", answer.status);
    }

    // Parts.
    let whole = server.get("/dir/large");
    let size = large.len();
    assert_eq!(whole.field("Content-Length"), Some("1200000"));
    assert_eq!(whole.field("Accept-Ranges"), Some("bytes"));
    for (range, first, end) in [
        ("0-0", 0, 1),
        ("5000-1048999", 5000, 1_049_000),
        ("1199999-", size - 1, size),
        ("1000000-99999999999999999999999", 1_000_000, size),
        ("-7", size - 7, size),
        ("-9999999", 0, size),
    ] {
        let answer = server.ask("GET", "/dir/large", &format!("Range: bytes={range}\r\n"));
        assert_eq!(answer.status, 206, "{range}");
        assert!(answer.body == large[first..end], "{range}: {} bytes", answer.body.len());
        let told = format!("bytes {first}-{}/{size}", end - 1);
        assert_eq!(answer.field("Content-Range"), Some(&*told));
    }
    for (path, range) in
        [("/dir/large", "1200000-"), ("/dir/large", "-0"), ("/dir/empty", "0-0"), ("/dir/empty", "-5")]
    {
        let answer = server.ask("GET", path, &format!("Range: bytes={range}\r\n"));
        assert_eq!(answer.status, 416, "{path} {range}");
        assert!(answer.field("Content-Range").is_some_and(|all| all.starts_with("bytes */")));
    }
    for range in ["bytes=5-4", "bytes=a-b", "bytes=-", "lines=0-1", "bytes=0-1,5-6", "bytes=+1-5"] {
        let answer = server.ask("GET", "/dir/large", &format!("Range: {range}\r\n"));
        assert!(answer.status == 200 && answer.body == large, "{range}: {}", answer.status);
    }
    let tag = whole.field("ETag").unwrap();
    let part = |tag: &str| {
        server.ask("GET", "/dir/large", &format!("Range: bytes=1-2\r\nIf-Range: {tag}\r\n")).status
    };
    assert_eq!((part(tag), part("\"other\"")), (206, 200));

    // Heads have no body.
    let head = server.ask("HEAD", "/dir/large", "Range: bytes=0-0\r\n");
    assert_eq!((head.status, head.field("Content-Length"), head.body.len()), (200, Some("1200000"), 0));
    assert_eq!(server.ask("HEAD", "/none", "").status, 404);

    // What there is not, and what is not for everybody.
    for path in [
        "/none",
        "/none/",
        "/dir/large/",
        "/dir/large/x",
        "/host",
        "/loop",
        "/%00",
        &format!("/{}", "n".repeat(256)),
    ] {
        assert_eq!(server.get(path).status, 404, "{path}");
    }
    for path in [
        "/secret",
        "/private/",
        "/private/file",
        "/private/none",
        "/private/..",
        "/through",
        "/closed/",
        "/fifo",
    ] {
        assert_eq!(server.get(path).status, 403, "{path}");
    }
    assert_eq!(server.get("/closed/file").body, b"c");

    // What is not understood.
    let refused = server.ask("PUT", "/dir/large", "Content-Length: 3\r\n\r\nabc");
    assert_eq!((refused.status, refused.field("Allow")), (405, Some("GET, HEAD")));
    assert_eq!(server.get("dir/large").status, 400);
    assert_eq!(server.send(b"\x16\x03\x01\x02\x00").status, 400);
    assert_eq!(server.send(b"GET / HT").status, 400);
    assert_eq!(server.ask("GET", "/", &format!("X: {}\r\n", "x".repeat(40_000))).status, 431);

    let group = Server::start(&image, "1000:4242", folder.path());
    assert_eq!((group.get("/secret").body, group.get("/private/").status), (b"s".to_vec(), 403));
    drop((server, group));
    assert!(std::fs::read(&image).unwrap() == before, "the volume was written to");
    assert_clean(&image);
}
