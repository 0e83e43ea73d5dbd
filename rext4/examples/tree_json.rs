//! Prints the files of a volume as JSON, one object a line: `tree_json IMAGE [DIRECTORY]`.

use std::error::Error;
use std::os::unix::ffi::OsStrExt as _;

use rext4::{FileType, OpenOptions};
use serde_json::{Value, json};

fn main() -> Result<(), Box<dyn Error>> {
    let words: Vec<_> = std::env::args_os().skip(1).collect();
    let (image, directory) = match &words[..] {
        [image] => (image, "/".as_ref()),
        [image, directory] => (image, directory.as_os_str()),
        _ => return Err("usage: tree_json IMAGE [DIRECTORY]".into()),
    };
    let fs = OpenOptions::new().read_only(true).open(image)?;
    for file in fs.walk(directory)? {
        let (path, node) = file?;
        let attr = node.attributes()?;
        let mut line = json!({
            "path": text(path.as_os_str().as_bytes()),
            "inode": attr.ino.get(),
            "type": format!("{:?}", node.kind()),
            "mode": format!("{:04o}", attr.permissions()),
            "uid": attr.uid,
            "gid": attr.gid,
            "size": attr.size,
            "links": attr.links,
            "mtime": attr.mtime.sec,
        });
        if node.kind() == FileType::Symlink {
            line["target"] = text(&node.read_link()?);
        }
        println!("{line}");
    }
    Ok(())
}

/// A name as a string, or as the numbers of its bytes where it is no UTF-8.
fn text(bytes: &[u8]) -> Value {
    std::str::from_utf8(bytes).map_or_else(|_| json!(bytes), |text| json!(text))
}
