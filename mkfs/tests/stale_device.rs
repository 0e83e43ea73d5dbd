//! A device full of old bytes that are not given back first: whatever must read as zeros is made to.

use std::os::unix::fs::FileExt;
use std::process::Command;

use blockdev::BlockDevice;
use blockdev::sim::{Fill, MemDevice};
use mkfs::{Kind, Options};

#[test]
fn old_bytes_do_not_shine_through() {
    if let Err(error) = Command::new("e2fsck").arg("-V").output() {
        assert!(std::env::var("CI").as_deref() != Ok("true"), "e2fsck: {error}");
        eprintln!("SKIPPED: e2fsck: {error}");
        return;
    }
    const SIZE: u64 = 48 << 20;
    for kind in [Kind::Ext2, Kind::Ext3, Kind::Ext4] {
        for (lazy, features) in [(true, ""), (false, ""), (true, "mmp"), (true, "^metadata_csum")] {
            let device = MemDevice::new(SIZE, Fill::Stale(0xdead));
            let mut options = Options::new(kind, 1_600_000_000);
            options.discard = false;
            options.lazy_itable_init = lazy;
            options.features = features.split(',').filter(|f| !f.is_empty()).map(str::to_owned).collect();
            mkfs::format(&device, &options).unwrap();
            let mut bytes = vec![0; SIZE as usize];
            device.read_at(0, &mut bytes).unwrap();
            let image = tempfile::NamedTempFile::new().unwrap();
            image.as_file().write_all_at(&bytes, 0).unwrap();
            let end = Command::new("e2fsck").arg("-fn").arg(image.path()).output().unwrap();
            let said = String::from_utf8_lossy(&end.stdout);
            assert!(end.status.success(), "{kind:?} lazy={lazy} {features}: {said}");
        }
    }
}
