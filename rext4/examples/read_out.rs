//! Writes a file of a volume to standard output: `read_out IMAGE PATH`.

use std::error::Error;
use std::io;

use rext4::{OpenFlags, OpenOptions};

fn main() -> Result<(), Box<dyn Error>> {
    let words: Vec<_> = std::env::args_os().skip(1).collect();
    let [image, path] = &words[..] else {
        return Err("usage: read_out IMAGE PATH".into());
    };
    let fs = OpenOptions::new().read_only(true).open(image)?;
    let mut file = fs.open_file(path, OpenFlags::default())?;
    io::copy(&mut file, &mut io::stdout().lock())?;
    Ok(())
}
