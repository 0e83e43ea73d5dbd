//! Random damage: bytes of metadata blocks flipped, their checksums made right again in half of the images.
//! The checker must end, e2fsck must find its repair clean, and what e2fsck keeps of the files must be kept
//! here, too.
//!
//! `REXT4_DAMAGE_IMAGES` sets how many images (10 000 in the long tests), `REXT4_DAMAGE_SEED` the first seed;
//! a failure names its own. `REXT4_DAMAGE_KEEP` is a file that gets the damaged image, `REXT4_DAMAGE_VERBOSE`
//! tells more.

mod support;

use std::collections::BTreeMap;

use ext4_format::Ino;
use fsck::Mode;
use support::mutate::mutate;
use support::{
    Held, Kind, Rng, Volume, check, copied_little, e2fsck, e2fsck_of, encrypted, filled, filled_little,
    fix_sum,
};

/// Volumes of every age and feature: how they are made, their size, and how they get their files.
const VARIANTS: [(&str, &str, Fill); 28] = [
    ("-t ext4 -b 1024 -J size=1 -N 1024", "8M", Fill::Many),
    ("-t ext4 -b 1024 -J size=1 -N 1024 -O ^metadata_csum,^64bit", "8M", Fill::Many),
    ("-t ext3 -b 1024 -J size=1 -N 1024", "8M", Fill::Many),
    ("-t ext4 -b 1024 -J size=1 -N 1024 -O ^has_journal,^resize_inode,^flex_bg", "8M", Fill::Many),
    ("-r 0 -O none -b 1024 -N 96", "400K", Fill::Little),
    ("-O none -b 1024 -N 96 -I 128", "400K", Fill::Little),
    ("-t ext2 -b 1024 -N 128 -I 128", "700K", Fill::Little),
    ("-t ext2 -b 2048 -N 128 -I 256 -g 512", "1400K", Fill::Little),
    ("-t ext2 -b 4096 -N 128 -O ^filetype", "2M", Fill::Little),
    ("-t ext3 -b 4096 -N 128 -I 128 -J size=4", "16M", Fill::Little),
    ("-t ext4 -b 1024 -N 256 -J size=1 -O inline_data", "4M", Fill::Little),
    ("-t ext4 -b 1024 -N 256 -O bigalloc,^has_journal -C 4096", "8M", Fill::Little),
    ("-t ext4 -b 1024 -N 256 -O meta_bg,^resize_inode,^has_journal -g 512", "4M", Fill::Little),
    ("-t ext4 -b 1024 -N 256 -O ^metadata_csum,uninit_bg,^has_journal -g 1024", "4M", Fill::Little),
    ("-t ext4 -b 1024 -N 256 -O ea_inode,sparse_super2,^has_journal -g 1024", "4M", Fill::Little),
    ("-t ext4 -b 4096 -N 256 -O encrypt,verity,large_dir,stable_inodes,^has_journal", "4M", Fill::Little),
    ("-t ext4 -b 1024 -N 256 -J size=1 -O fast_commit,orphan_file,metadata_csum_seed", "4M", Fill::Little),
    ("-t ext4 -b 1024 -N 256 -O mmp,^has_journal", "4M", Fill::Copied),
    (
        "-t ext4 -b 1024 -N 256 -O quota,project,^has_journal -E quotatype=usrquota:grpquota:prjquota",
        "4M",
        Fill::Copied,
    ),
    ("-t ext4 -b 1024 -N 256 -O casefold,^has_journal -E encoding=utf8", "4M", Fill::Folded),
    (
        "-t ext4 -b 1024 -N 256 -J size=1 -O quota,bigalloc,ea_inode,large_dir,casefold,orphan_file -C 2048 \
         -E encoding=utf8,encoding_flags=strict",
        "8M",
        Fill::Folded,
    ),
    ("-t ext4 -b 4096 -N 256 -I 512 -J size=4 -O orphan_file,inline_data", "16M", Fill::Little),
    ("-t ext4 -b 1024 -N 256 -O ^has_journal,^extent,^64bit", "4M", Fill::Little),
    ("-t ext4 -b 2048 -N 512 -J size=2 -O ^flex_bg -g 2048", "8M", Fill::Little),
    ("-t ext4 -b 1024 -N 512 -O encrypt,^has_journal", "4M", Fill::Encrypted),
    ("-t ext4 -b 65536 -N 256 -O ^has_journal,^resize_inode", "16M", Fill::Copied),
    ("-t ext4 -b 1024 -N 256 -O bigalloc,inline_data,ea_inode,^has_journal -C 16384", "8M", Fill::Little),
    ("-t ext4 -b 1024 -N 128 -O ^has_journal,^resize_inode -g 1024", "16M", Fill::Little),
];

/// One image in so many is compared for `-p` and `-n`, too.
const SAMPLED: u64 = 8;

/// Who fills a volume, and with how much.
#[derive(Clone, Copy)]
enum Fill {
    /// The kernel, with many files.
    Many,
    /// The kernel, with a few.
    Little,
    /// mke2fs, where this kernel may not mount the volume.
    Copied,
    /// mke2fs; one directory is case-insensitive.
    Folded,
    /// The kernel; some files are encrypted.
    Encrypted,
}

/// The volume of a row of [`VARIANTS`].
fn base((options, size, fill): (&str, &str, Fill)) -> Option<Vec<u8>> {
    match fill {
        Fill::Many => filled(options, 8),
        Fill::Little => filled_little(options, size),
        Fill::Copied => Some(copied_little(options, size, false)),
        Fill::Folded => Some(copied_little(options, size, true)),
        Fill::Encrypted => encrypted(options, size),
    }
}

/// A volume without damage, its metadata and its files.
struct Base {
    image: Vec<u8>,
    places: Vec<(u64, Kind)>,
    files: BTreeMap<String, (Ino, Held)>,
}

impl Base {
    fn new(variant: (&str, &str, Fill)) -> Option<Base> {
        let (image, options) = (base(variant)?, variant.0);
        assert_eq!(check(&image, Mode::CheckOnly).0.unwrap().left, 0, "{options}");
        let places = Volume::new(&image).unwrap().metadata();
        let files = Volume::new(&image).unwrap().files();
        assert!(files.len() > 50, "{options}: {}", files.len());
        Some(Base { image, places, files })
    }
}

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// Flips 1 to 100 bytes. Returns the damaged image.
fn damage(base: &[u8], places: &[(u64, Kind)], seed: u64) -> Vec<u8> {
    let mut rng = Rng::new(seed);
    for _ in 0..8 {
        rng.next();
    }
    let size = Volume::new(base).unwrap().geometry.block_size as usize;
    let mut image = base.to_vec();
    if rng.below(2) == 0 {
        for _ in 0..[1, 1, 2, 5, 12][rng.below(5)] {
            mutate(&mut image, base, places, &mut rng);
        }
        return image;
    }
    let fix = rng.below(2) == 0;
    let flips = match rng.below(3) {
        0 => 1,
        1 => 1 + rng.below(10),
        _ => 1 + rng.below(100),
    };
    let mut touched = Vec::new();
    for _ in 0..flips {
        let (block, kind) = places[rng.below(places.len())];
        let (start, len) = if kind == Kind::Super { (1024 % size, 1024) } else { (0, size) };
        let at = block as usize * size + start + rng.below(len);
        image[at] = match rng.below(3) {
            0 => image[at] ^ 1 << rng.below(8),
            1 => rng.next() as u8,
            _ => [0, 0xff][rng.below(2)],
        };
        touched.push((block, kind));
    }
    if fix {
        for (block, kind) in touched {
            fix_sum(&mut image, base, block, kind);
        }
    }
    image
}

#[test]
fn flipped_bytes_are_repaired() {
    let count = setting("REXT4_DAMAGE_IMAGES", 60);
    let first = setting("REXT4_DAMAGE_SEED", 1);
    let verbose = std::env::var_os("REXT4_DAMAGE_VERBOSE").is_some();
    let mut unclean = Vec::new();
    let (mut theirs_kept, mut both_kept) = (0_u64, 0_u64);
    let (mut codes, mut compared, mut preens, mut verdicts) = (0_u64, 0_u64, 0_u64, 0_u64);
    let mut bases: Vec<Option<Base>> = (0..VARIANTS.len()).map(|_| None).collect();
    for seed in first..first + count {
        if verbose && (seed - first) % 500 == 499 {
            eprintln!(
                "{} images: {} not clean; {both_kept} of e2fsck's {theirs_kept} files kept; exit codes {codes}; \
                 of {compared} preening {preens}, -n {verdicts}",
                seed - first,
                unclean.len()
            );
        }
        let at = seed as usize % bases.len();
        if bases[at].is_none() {
            let Some(base) = Base::new(VARIANTS[at]) else { return };
            bases[at] = Some(base);
        }
        let Some(Base { image: base, places, files }) = &bases[at] else { return };
        let image = damage(base, places, seed);
        if let Some(path) = std::env::var_os("REXT4_DAMAGE_KEEP") {
            std::fs::write(path, &image).unwrap();
        }
        let (report, ours) = check(&image, Mode::Yes);
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), &image).unwrap();
        let (code, _) = e2fsck(file.path(), "-y");
        let theirs = std::fs::read(file.path()).unwrap();
        let mine = report.as_ref().map_or(8, |report| i32::from(report.exit_code()));
        codes += u64::from(mine == code);
        if (seed / bases.len() as u64).is_multiple_of(SAMPLED) {
            compared += 1;
            // What `-n` says is clean is clean for e2fsck.
            let looked = check(&image, Mode::CheckOnly).0;
            let clean = (looked.as_ref().is_ok_and(|report| report.left == 0), e2fsck_of(&image).0 == 0);
            // Preening stops where e2fsck's does: 0 and 1 are no difference to whoever waits for the volume.
            std::fs::write(file.path(), &image).unwrap();
            let theirs_preening = e2fsck(file.path(), "-p").0;
            let preening = check(&image, Mode::Preen).0.map_or(4, |report| i32::from(report.exit_code()));
            verdicts += u64::from(clean.0 == clean.1);
            preens += u64::from((preening < 4) == (theirs_preening < 4));
            if verbose && (clean.0 != clean.1 || (preening < 4) != (theirs_preening < 4)) {
                let found = looked.map(|report| report.codes());
                eprintln!(
                    "seed {seed}: -fn clean {} {}; -fy {mine}, e2fsck {code}; -fp {preening}, e2fsck \
                     {theirs_preening}: {found:?}",
                    clean.0, clean.1
                );
            }
        }
        // Where e2fsck gives up, too, nobody is better.
        if report.is_err() && code & 8 != 0 {
            continue;
        }
        let (verdict, words) = e2fsck_of(&ours);
        let again = check(&ours, Mode::CheckOnly).0.map_or(true, |report| report.left > 0);
        if verdict != 0 || report.is_err() || again {
            unclean.push(seed);
            if verbose {
                eprintln!("seed {seed}: {:?} {verdict} again {again}\n{words}", report.map(|r| r.codes()));
            }
            continue;
        }
        // What e2fsck did not come to the end of says nothing about what it keeps.
        if code & 8 != 0 {
            continue;
        }
        let kept = |image: &[u8]| -> BTreeMap<String, Held> {
            Volume::new(image)
                .map(|v| v.files())
                .unwrap_or_default()
                .into_iter()
                .map(|(p, (_, h))| (p, h))
                .collect()
        };
        let (ours, theirs) = (kept(&ours), kept(&theirs));
        let mut lost = Vec::new();
        for (path, (_, held)) in files {
            if theirs.get(path) == Some(held) {
                theirs_kept += 1;
                both_kept += u64::from(ours.get(path) == Some(held));
                if ours.get(path) != Some(held) {
                    lost.push(path);
                }
            }
        }
        if verbose && let Some(first) = lost.first() {
            let (found, now) = (report.map(|report| report.codes()), ours.get(*first));
            eprintln!(
                "seed {seed}: lost {}, as {first}: {:?}\nnow {now:?}; {found:?}",
                lost.len(),
                files[*first].1
            );
        }
    }
    let kept = both_kept as f64 / theirs_kept.max(1) as f64;
    eprintln!(
        "{count} images: {} not clean {unclean:?}; {:.3} % of e2fsck's files kept; the exit code of -fy is e2fsck's in \
         {:.2} %, preening ends as e2fsck's in {:.2} %, -fn agrees in {:.2} %",
        unclean.len(),
        100.0 * kept,
        100.0 * codes as f64 / count as f64,
        100.0 * preens as f64 / compared.max(1) as f64,
        100.0 * verdicts as f64 / compared.max(1) as f64,
    );
    assert!(unclean.len() as f64 <= 0.005 * count as f64, "seeds {unclean:?}");
    assert!(kept >= 0.99, "{kept}");
}

/// Whole metadata blocks replaced by noise, by zeros or by each other: nothing is promised about what is
/// saved, but the check ends, does not panic, and ends clean where it says so.
#[test]
fn hostile_blocks_do_no_harm() {
    let count = setting("REXT4_DAMAGE_IMAGES", 60) / 2;
    let first = setting("REXT4_DAMAGE_SEED", 1);
    for variant in VARIANTS {
        let options = variant.0;
        let Some(base) = base(variant) else { return };
        let places = Volume::new(&base).unwrap().metadata();
        let size = Volume::new(&base).unwrap().geometry.block_size as usize;
        for seed in first..first + count.div_ceil(VARIANTS.len() as u64) {
            let mut rng = Rng::new(seed ^ 0x5eed);
            let mut image = base.clone();
            for _ in 0..1 + rng.below(12) {
                let (block, kind) = places[rng.below(places.len())];
                let other = places[rng.below(places.len())].0 as usize * size;
                let at = block as usize * size;
                match rng.below(4) {
                    0 => image[at..at + size].fill(0),
                    1 => image[at..at + size].iter_mut().for_each(|byte| *byte = rng.next() as u8),
                    2 => image.copy_within(other..other + size, at),
                    _ => {
                        let (from, to) = (rng.below(size), rng.below(size));
                        image[at + from.min(to)..at + from.max(to)].fill(0xff);
                    }
                }
                if rng.below(2) == 0 {
                    fix_sum(&mut image, &base, block, kind);
                }
            }
            if rng.below(8) == 0 {
                image.truncate(rng.below(image.len()));
            }
            if let Some(path) = std::env::var_os("REXT4_DAMAGE_KEEP") {
                std::fs::write(path, &image).unwrap();
            }
            let started = std::time::Instant::now();
            let _ = check(&image, Mode::CheckOnly);
            if let (Ok(report), repaired) = check(&image, Mode::Yes)
                && report.left == 0
            {
                let again = check(&repaired, Mode::CheckOnly).0;
                assert!(again.is_ok_and(|report| report.left == 0), "{options} seed {seed}");
            }
            if started.elapsed().as_secs() > 20 {
                eprintln!("{options} seed {seed} took {:?}", started.elapsed());
            }
        }
    }
}
