//! Everything that can be wrong, as values: one table with a row for each kind.
//!
//! A row says how the problem is told, what is asked, and what preening (`-p`) does. A [`Problem`] is one
//! finding: a code and the numbers and names that its text mentions.

use ext4_format::{BlockNo, GroupNo, Ino};

/// What preening does about a problem.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Preen {
    /// Fixes it without a word of doubt.
    Fix,
    /// Stops and wants a person.
    Stop,
    /// Fixes it, and it is no error when it stays: the volume brings it right by itself.
    Mild,
}

/// What is offered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Question {
    /// Put the right value in place.
    Fix,
    /// Empty the field, entry or inode.
    Clear,
    /// Keep what can be kept of a block.
    Salvage,
    /// Shorten the file.
    Truncate,
    /// Give a lost file a name in lost+found.
    Reconnect,
    /// Make a missing thing anew.
    Create,
    /// Take a free block for it.
    Allocate,
    /// Give each owner its own copy.
    Clone,
    /// Build the tree or the index again.
    Rebuild,
    /// Move the structure to a free place.
    Relocate,
    /// Replay the journal.
    Replay,
    /// Nothing: only told.
    Tell,
}

impl Question {
    /// The question as it is put, and what is reported when it was done.
    #[must_use]
    pub fn words(self) -> (&'static str, &'static str) {
        match self {
            Question::Fix => ("Fix", "FIXED"),
            Question::Clear => ("Clear", "CLEARED"),
            Question::Salvage => ("Salvage", "SALVAGED"),
            Question::Truncate => ("Truncate", "TRUNCATED"),
            Question::Reconnect => ("Connect to /lost+found", "RECONNECTED"),
            Question::Create => ("Create", "CREATED"),
            Question::Allocate => ("Allocate", "ALLOCATED"),
            Question::Clone => ("Clone multiply-claimed blocks", "CLONED"),
            Question::Rebuild => ("Rebuild", "WILL BE REBUILT"),
            Question::Relocate => ("Relocate", "RELOCATED"),
            Question::Replay => ("Replay", "REPLAYED"),
            Question::Tell => ("", ""),
        }
    }
}

/// One row of the table.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// Stable name, for programs.
    pub name: &'static str,
    /// What is asked.
    pub question: Question,
    /// What preening does.
    pub preen: Preen,
    /// The text; `{ino}`, `{dir}`, `{block}`, `{group}`, `{name}`, `{found}` and `{expected}` are filled in.
    pub text: &'static str,
}

macro_rules! problems {
    ($($code:ident $name:literal $question:ident $preen:ident $text:literal;)*) => {
        /// The kinds of problems.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        #[allow(missing_docs, reason = "the text beside each code says what it is")]
        pub enum Code { $($code),* }

        impl Code {
            /// Every code.
            pub const ALL: &'static [Code] = &[$(Code::$code),*];

            /// The row of this code.
            #[must_use]
            pub fn row(self) -> &'static Row {
                const ROWS: &[Row] = &[$(Row {
                    name: $name,
                    question: Question::$question,
                    preen: Preen::$preen,
                    text: $text,
                }),*];
                &ROWS[self as usize]
            }
        }
    };
}

problems! {
    // Before pass 1: the volume as a whole.
    SuperDamaged "super-damaged" Fix Stop "The superblock is damaged ({name}); the copy in block {block} is used";
    SuperFeatures "super-features" Fix Stop "Superblock: {name}";
    SuperCopy "super-copy" Fix Mild "The copy of the superblock in block {block} says something else ({name})";
    SuperFeatureBits "super-feature-bits" Fix Fix "Superblock: {name}";
    SizeBeyondDevice "size-beyond-device" Tell Stop "The superblock says {expected} blocks, the device has {found}; one of them is likely corrupt";
    DescChecksum "desc-checksum" Fix Fix "Group {group}: descriptor checksum is {found:x}, should be {expected:x}";
    DescFromBackup "desc-from-backup" Fix Stop "Group descriptors are damaged (group {group}: {name}); the copy in block {block} is used";
    DescCopy "desc-copy" Fix Mild "The copy of the group descriptors in block {block} (from group {group} on) names other places";
    BlockBitmapPlace "block-bitmap-place" Relocate Stop "Group {group}: block bitmap at {found} is not on a sane place";
    InodeBitmapPlace "inode-bitmap-place" Relocate Stop "Group {group}: inode bitmap at {found} is not on a sane place";
    InodeTablePlace "inode-table-place" Relocate Stop "Group {group}: inode table at {found} is not on a sane place. WARNING: severe data loss possible";
    ItableUnused "itable-unused" Fix Fix "Group {group}: {found} unused inodes at the end of the table, which holds an inode in use at {expected}";
    JournalReplay "journal-replay" Replay Fix "The journal holds transactions that were not written home";
    JournalSkipped "journal-skipped" Tell Fix "Warning: journal recovery is skipped because nothing may be written";
    JournalOverlaid "journal-overlaid" Tell Fix "The journal holds transactions. Nothing may be written, so the check sees the volume as it will be after their replay";
    JournalInode "journal-inode" Clear Fix "The journal inode {ino} is invalid ({name})";
    JournalFromBackup "journal-from-backup" Fix Fix "The journal inode {ino} is invalid ({name}); the superblock holds a copy of its map";
    JournalSuper "journal-super" Fix Fix "The superblock of the journal is damaged ({name})";
    JournalCorrupt "journal-corrupt" Clear Stop "The journal is corrupt: {name}";
    JournalMissing "journal-missing" Create Fix "The volume has no journal";
    JournalHint "journal-hint" Fix Fix "The superblock wants recovery, but there is no journal";
    JournalUnannounced "journal-unannounced" Fix Fix "The superblock names the journal inode {ino}, but lacks the has_journal feature";
    JournalUnused "journal-unused" Clear Fix "The journal inode is not in use, but holds data";
    JournalV2Fields "journal-v2-fields" Clear Fix "The superblock of the journal is of version 1, but has fields of version 2";
    JournalError "journal-error" Fix Fix "The journal records an error of the volume";
    OrphanHead "orphan-head" Clear Stop "The superblock's orphan list starts at {found}, which is no inode";
    OrphanLink "orphan-link" Clear Stop "The orphan list is broken at inode {ino} ({name})";
    OrphanInode "orphan-inode" Clear Fix "Inode {ino} is an orphan: it was to be freed";
    OrphanTruncate "orphan-truncate" Truncate Fix "Inode {ino} is an orphan: its truncation to {expected} bytes was not finished";
    OrphanPresent "orphan-present" Clear Fix "The superblock says that the orphan file may hold orphans";
    OrphanFileInode "orphan-file-inode" Clear Fix "The orphan file, inode {ino}, cannot be used ({name})";
    OrphanFileBlock "orphan-file-block" Fix Fix "Block {block} of the orphan file is damaged ({name})";
    OrphanFileEntry "orphan-file-entry" Clear Fix "The orphan file names inode {found}, which is no inode";
    MmpDamaged "mmp-damaged" Fix Fix "The multi-mount protection block {block} is damaged ({name})";
    MmpInUse "mmp-in-use" Clear Stop "The multi-mount protection block says that the volume is in use or was not unmounted";
    ResizeInode "resize-inode" Fix Stop "The resize inode is invalid ({name})";
    ResizeFeature "resize-feature" Clear Fix "There is a resize inode, but the feature is off";

    BadBlockPrimary "bad-block-primary" Clear Stop "Block {block} of the superblock or the group descriptors is on the list of bad blocks: if it really is bad, the volume cannot be repaired";
    BadBlockPlace "bad-block-place" Relocate Stop "Group {group}: the {name} at {block} is on the list of bad blocks";
    BadBlockNoRoom "bad-block-no-room" Tell Stop "Group {group}: there is no room to relocate what lies on the bad block {block}";
    BadBlockMetadata "bad-block-metadata" Tell Fix "Warning: group {group}: block {block}, of a copy of superblock or descriptors, is on the list of bad blocks";

    // Pass 1: inodes and blocks.
    InodeChecksum "inode-checksum" Fix Fix "Inode {ino} passes every check, but its checksum does not match";
    InodeDamagedChecksum "inode-damaged-checksum" Clear Stop "Inode {ino} seems to contain garbage: checksum and contents are wrong";
    InodeDtime "inode-dtime" Fix Stop "Inode {ino} is in use, but has a deletion time";
    DeletedNoDtime "deleted-no-dtime" Fix Fix "Deleted inode {ino} has no deletion time";
    DeletedLowDtime "deleted-low-dtime" Fix Fix "Inode {ino} was part of the orphan list, which does not name it";
    IsDirectory "is-directory" Fix Stop "Inode {ino} says that it is a special file, but holds a directory";
    InodeMode "inode-mode" Clear Stop "Inode {ino} has a mode that no file has ({found:o})";
    RootNotDir "root-not-dir" Clear Stop "The root inode is not a directory";
    ReservedMode "reserved-mode" Clear Fix "The reserved inode {ino} has a mode ({found:o})";
    ReservedData "reserved-data" Clear Fix "The reserved inode {ino} holds data that make no sense";
    JournalMode "journal-mode" Fix Fix "The journal inode {ino} is not a regular file";
    BadBlocksInode "bad-blocks-inode" Clear Stop "The bad-blocks inode looks wrong";
    ExtraIsize "extra-isize" Fix Fix "Inode {ino} has an extra size of {found}, which is invalid";
    InodeFaddr "inode-faddr" Clear Stop "Inode {ino}: the fragment address is {found}, should be 0";
    SizeHighBits "size-high-bits" Clear Fix "Inode {ino}: the upper half of the size of a directory or special file is {found}, should be 0";
    FileAclHighBits "file-acl-high" Clear Fix "Inode {ino}: the upper half of the attribute block is {found}, should be 0";
    BlocksHighBits "blocks-high-bits" Clear Fix "Inode {ino}: the upper half of the block count is {found}, should be 0";
    FlagIndexFile "flag-index-file" Clear Fix "Inode {ino} has the index flag, but is no directory";
    FlagIndexInline "flag-index-inline" Clear Fix "Directory {ino} has the index flag, but its entries are in the inode";
    FlagIndexFeature "flag-index-feature" Clear Stop "Directory {ino} has the index flag, but the volume has no dir_index";
    FlagExtentsFeature "flag-extents-feature" Fix Stop "Inode {ino} is in extent format, but the superblock lacks the extent feature";
    FlagExtentsOnMap "flag-extents-map" Clear Stop "Inode {ino} has the extent flag, but holds a block map";
    FlagExtentsFastSymlink "flag-extents-fast-symlink" Clear Stop "The symbolic link {ino} has the extent flag, but its target is in the inode";
    FlagExtentsMissing "flag-extents-missing" Fix Fix "Inode {ino} lacks the extent flag, but holds an extent tree";
    BigallocBlockMap "bigalloc-block-map" Fix Stop "Inode {ino} has a block map, which a volume with bigalloc cannot have";
    FlagExtentsOnSpecial "flag-extents-special" Clear Stop "Inode {ino} is a special file with flags of extents, inline data or an index";
    FlagImmutableSpecial "flag-immutable-special" Clear Mild "Inode {ino} is a special file with the immutable or the append-only flag";
    FlagInlineFeature "flag-inline-feature" Clear Stop "Inode {ino} has inline data, but the superblock lacks the feature";
    FlagInlineAndExtents "flag-inline-and-extents" Fix Stop "Inode {ino} has the flags of inline data and of extents, and holds {name}";
    InlineFeature "inline-feature" Fix Fix "Inode {ino} has inline data, but the superblock lacks the inline_data feature";
    TimeEpoch "time-epoch" Fix Mild "Inode {ino} has a time after 2310, which is likely one before 1970";
    FlagCasefold "flag-casefold" Clear Stop "Inode {ino} has the casefold flag where it may not have it";
    FlagImagic "flag-imagic" Clear Stop "Inode {ino} has the imagic flag, but the volume lacks the feature";
    FlagEncrypt "flag-encrypt" Clear Stop "Inode {ino} is encrypted, but the volume lacks the feature";
    EncryptionDamaged "encryption-damaged" Clear Stop "Inode {ino} is encrypted, but its encryption attribute is damaged ({name})";
    EncryptionMissing "encryption-missing" Clear Stop "Inode {ino} is marked as encrypted, but has no encryption attribute";
    EaInodeSpurious "ea-inode-spurious" Clear Fix "Inode {ino} has the ea_inode flag, but no attribute refers to it";
    FlagEaInode "flag-ea-inode" Clear Fix "Inode {ino} has the ea_inode flag where it may not have it";
    FlagHugeFile "flag-huge-file" Clear Stop "Inode {ino} counts filesystem blocks, but the volume lacks the feature";
    SpecialFile "special-file" Fix Fix "Inode {ino} is a special file with a size";
    SymlinkTooBig "symlink-too-big" Truncate Stop "The symbolic link {ino} maps blocks behind its target";
    SymlinkDamaged "symlink-damaged" Clear Stop "The symbolic link {ino} is invalid";
    LargeFileFeature "large-file-feature" Fix Fix "The volume holds large files, but lacks the large_file feature";
    InodeSize "inode-size" Fix Fix "Inode {ino}: size is {found}, should be {expected}";
    InodeBlocks "inode-blocks" Fix Fix "Inode {ino}: block count is {found}, should be {expected}";
    ExtentHeader "extent-header" Clear Stop "Inode {ino} has an invalid extent tree ({name})";
    ExtentDepth "extent-depth" Fix Stop "Inode {ino} has an extent tree with a wrong depth ({name})";
    ExtentMax "extent-max" Fix Stop "Inode {ino}: a node of the extent tree says that {found} entries fit, should be {expected}";
    ExtentNode "extent-node" Clear Stop "Inode {ino}: extent block {block} is invalid ({name})";
    ExtentNodeDepth "extent-node-depth" Fix Stop "Inode {ino}: extent block {block} has depth {found}, should be {expected}";
    ExtentNodeChecksum "extent-node-checksum" Fix Stop "Inode {ino}: extent block {block} passes every check, but its checksum does not match";
    ExtentTreeDeep "extent-tree-deep" Rebuild Fix "Inode {ino} has an extent tree of {found} levels, more than {expected}";
    ExtentNodeMetadata "extent-node-metadata" Relocate Stop "Inode {ino}: a block of the extent tree lies on the volume's metadata";
    ExtentNodePlace "extent-node-place" Clear Stop "Inode {ino}: extent block {block} lies outside the volume or on metadata";
    ExtentInvalid "extent-invalid" Clear Stop "Inode {ino} has an invalid extent (file block {found}, block {block}: {name})";
    ExtentOrder "extent-order" Clear Stop "Inode {ino} has an extent out of order (file block {found}, at least {expected} expected)";
    ExtentIndexStart "extent-index-start" Fix Stop "Inode {ino}: an index starts at file block {found}, its node {block} at {expected}";
    ExtentHugeBlock "extent-beyond-max" Clear Stop "Inode {ino} has an extent past the largest file block";
    ExtentDirHole "extent-dir-hole" Fix Stop "Directory {ino}: file block {found} should be at {expected}";
    ExtentUnwrittenDir "extent-unwritten-dir" Fix Fix "Directory {ino} has an unwritten extent at file block {found}";
    ExtentCollision "extent-cluster" Clone Stop "Inode {ino}: extent at file block {found} is not aligned to its cluster, or shares it";
    BlockPointer "block-pointer" Clear Stop "Inode {ino}: file block {found} points to {block}, which is not on the volume";
    IndirectPointer "indirect-pointer" Clear Stop "Inode {ino}: indirect block {block} is not on the volume, on metadata, or used twice";
    DirectoryTooBig "directory-too-big" Truncate Stop "Directory {ino} maps file block {found}, which is too far";
    XattrPlace "xattr-place" Clear Stop "Inode {ino}: the attribute block {block} is not on the volume";
    XattrBlock "xattr-block" Clear Stop "Inode {ino}: the attribute block {block} is damaged ({name})";
    XattrChecksum "xattr-checksum" Fix Stop "Inode {ino}: the attribute block {block} passes every check, but its checksum does not match";
    XattrRefcount "xattr-refcount" Fix Stop "The attribute block {block} has a reference count of {found}, should be {expected}";
    XattrHash "xattr-hash" Fix Fix "Inode {ino}: an attribute in block {block} has a wrong hash";
    XattrInode "xattr-inode" Clear Stop "Inode {ino}: the attributes in the inode are damaged ({name})";
    XattrEmptyValue "xattr-empty-value" Fix Stop "Inode {ino} has an empty attribute that lies outside its place";
    XattrFeature "xattr-feature" Fix Fix "Inode {ino} has attributes, but the volume lacks the ext_attr feature";
    EaInodeBad "ea-inode-bad" Clear Fix "Inode {ino} names inode {found} as the value of an attribute, which it is not";
    EaInodeRefs "ea-inode-refs" Fix Fix "Attribute inode {ino} has a reference count of {found}, should be {expected}";
    InlineData "inline-data" Truncate Stop "Inode {ino}: the inline data are damaged ({name})";
    MultiplyClaimed "multiply-claimed" Clone Stop "Inode {ino} shares {found} block(s) with other inodes or metadata";
    MultiplyClaimedDelete "multiply-claimed-delete" Clear Stop "Inode {ino} keeps the blocks that it shares, unless the file is deleted";
    UnshareNoRoom "unshare-no-room" Tell Stop "To unshare blocks takes {found} clusters, and {expected} are free: nothing is unshared";
    NoRoom "no-room" Tell Stop "Inode {ino}: there is no room for the repair";
    CloneNoRoom "clone-no-room" Clear Stop "Inode {ino} needs {found} blocks of its own, and {expected} are free";
    QuotaUnused "quota-unused" Clear Fix "The quota inode {ino} is not in use, but holds data";
    QuotaInode "quota-inode" Clear Fix "The quota inode {ino} is invalid";

    // Pass 2: directories.
    DirHole "dir-hole" Allocate Stop "Directory {ino} has no block at file block {found}";
    DirBlockChecksum "dir-block-checksum" Fix Fix "Directory {ino}, block {block}: the checksum does not match";
    DirBlockNoTail "dir-block-no-tail" Fix Fix "Directory {ino}, block {block}: there is no room for the checksum";
    DirBlockDamaged "dir-block-damaged" Salvage Stop "Directory {ino}, block {block}, byte {found}: the entry is damaged ({name})";
    DotMissing "dot-missing" Fix Stop "Directory {ino} has no '.'";
    DotInode "dot-inode" Fix Stop "Directory {ino}: '.' names inode {found}";
    DotLength "dot-length" Fix Stop "Directory {ino}: the entry '.' takes {found} bytes, should be {expected}";
    DotTerminator "dot-terminator" Fix Stop "Directory {ino}: '{name}' is not followed by a zero";
    DotDotMissing "dotdot-missing" Fix Stop "Directory {ino} has no '..'";
    DotDotZero "dotdot-zero" Fix Stop "Directory {ino}: '..' names no inode";
    EntryDot "entry-dot" Clear Stop "Directory {ino} has a second entry '{name}'";
    EntryName "entry-name" Fix Stop "Directory {ino}: the entry '{name}' has characters that no name may have";
    EntryEncoding "entry-encoding" Fix Stop "Directory {ino}: the entry '{name}' is no text in the volume's encoding";
    EntryInode "entry-inode" Clear Stop "Directory {ino}: the entry '{name}' names inode {found}, which does not exist";
    EntryUnused "entry-unused" Clear Fix "Directory {ino}: the entry '{name}' names inode {found}, which is not in use";
    EntryReserved "entry-reserved" Clear Stop "Directory {ino}: the entry '{name}' names the reserved inode {found}";
    EntryRoot "entry-root" Clear Stop "Directory {ino}: the entry '{name}' names the root directory";
    EntryItself "entry-itself" Clear Stop "Directory {ino}: the entry '{name}' names its own directory";
    EntryDirLink "entry-dir-link" Clear Stop "Directory {ino}: the entry '{name}' is a second name of directory {found}";
    EntryType "entry-type" Fix Stop "Directory {ino}: the entry '{name}' has file type {found}, should be {expected}";
    EntryTypeFeature "entry-type-feature" Clear Fix "Directory {ino}: the entry '{name}' has file type {found}, but the volume records none";
    EntryTypeUnset "entry-type-unset" Fix Mild "Directory {ino}: the entry '{name}' has no file type, should be {expected}";
    EntryDuplicate "entry-duplicate" Fix Stop "Directory {ino} has the name '{name}' twice";
    EntryEncryptedName "entry-encrypted-name" Clear Stop "Encrypted directory {ino}: the entry '{name}' is too short for an encrypted name";
    EntryNotEncrypted "entry-not-encrypted" Clear Stop "Encrypted directory {ino}: the entry '{name}' names inode {found}, which is not encrypted";
    EntryOtherPolicy "entry-other-policy" Clear Stop "Encrypted directory {ino}: the entry '{name}' names inode {found}, which has another encryption policy";
    EntryEaInode "entry-ea-inode" Clear Stop "Directory {ino}: the entry '{name}' names attribute inode {found}";
    IndexRoot "index-root" Rebuild Fix "Directory {ino}: the root of the index is invalid ({name})";
    IndexNode "index-node" Rebuild Fix "Directory {ino}: index block {found} is invalid ({name})";
    IndexChecksum "index-checksum" Fix Fix "Directory {ino}: index block {found} has a wrong checksum";
    IndexOrder "index-order" Rebuild Fix "Directory {ino}: the hashes of block {found} are outside what the index says";
    IndexUnordered "index-unordered" Rebuild Fix "Directory {ino}: the hashes in the index are not in order (at block {found})";
    IndexReference "index-reference" Rebuild Stop "Directory {ino}: block {found} is named {expected} times by the index";
    IndexDepth "index-depth" Rebuild Stop "Directory {ino}: the index has depth {found}";
    IndexHash "index-hash" Rebuild Stop "Directory {ino}: the index uses the unknown hash {found}";

    // Pass 3: connectivity.
    RootMissing "root-missing" Create Stop "The root directory is missing";
    LostFoundMissing "lost-found-missing" Create Fix "/lost+found is missing";
    NoRoomToReconnect "no-room-to-reconnect" Tell Stop "Inode {ino} stays without a name: neither /lost+found nor / has room for one";
    DirUnconnected "dir-unconnected" Reconnect Stop "Directory {ino} is not connected to the tree";
    DotDotWrong "dotdot-wrong" Fix Stop "Directory {ino}: '..' names {found}, should be {expected}";

    // Pass 4: links.
    InodeUnattached "inode-unattached" Reconnect Stop "Inode {ino} has no name";
    ZeroUnattached "zero-unattached" Clear Fix "Inode {ino} is empty and has no name";
    DirNlinkFeature "dir-nlink-feature" Fix Fix "Directory {ino} has too many subdirectories to count, but the volume lacks the dir_nlink feature";
    LinkOverflow "link-overflow" Fix Mild "Directory {ino} does not count its links, and could: {expected}";
    LinkCount "link-count" Fix Fix "Inode {ino}: link count is {found}, should be {expected}";

    // Pass 5: bitmaps and counts.
    BlockBitmap "block-bitmap" Fix Fix "Group {group}: block bitmap differs in {found} place(s), first at block {block}";
    InodeBitmap "inode-bitmap" Fix Fix "Group {group}: inode bitmap differs in {found} place(s), first at inode {expected}";
    BlockBitmapChecksum "block-bitmap-checksum" Fix Fix "Group {group}: the checksum of the block bitmap does not match";
    InodeBitmapChecksum "inode-bitmap-checksum" Fix Fix "Group {group}: the checksum of the inode bitmap does not match";
    BitmapPadding "bitmap-padding" Fix Fix "Group {group}: the padding of the {name} is not set";
    GroupUninit "group-uninit" Fix Fix "Group {group} is flagged {name}, but is in use";
    GroupLastUninit "group-last-uninit" Fix Fix "Group {group} is the last one, and its block bitmap is flagged uninitialised";
    GroupUninitFeature "group-uninit-feature" Fix Fix "Group {group} is flagged uninitialised, but the volume lacks the feature";
    GroupFreeBlocks "group-free-blocks" Fix Fix "Group {group}: {found} free blocks counted, should be {expected}";
    GroupFreeInodes "group-free-inodes" Fix Fix "Group {group}: {found} free inodes counted, should be {expected}";
    GroupUsedDirs "group-used-dirs" Fix Fix "Group {group}: {found} directories counted, should be {expected}";
    FreeBlocks "free-blocks" Fix Mild "The volume counts {found} free blocks, should be {expected}";
    FreeInodes "free-inodes" Fix Mild "The volume counts {found} free inodes, should be {expected}";
    QuotaFile "quota-file" Create Fix "The quota file {ino} is damaged ({name})";
    QuotaUsage "quota-usage" Fix Fix "The quota file {ino} says that {name} uses {found} bytes, should be {expected}, or has other wrong counts";
    StateError "state-error" Fix Fix "The volume was marked as holding errors";
    StateNotValid "state-not-valid" Fix Fix "The volume was not marked as cleanly unmounted";

    // The check as a whole.
    RepairCycle "repair-cycle" Tell Stop "The repairs come back round after round and were given up ({name})";
}

impl Code {
    /// Whether it is damage. Finishing what a crash interrupted, and a note that there was some, are none: a
    /// volume with nothing else is clean, and nothing was corrected.
    #[must_use]
    pub fn is_damage(self) -> bool {
        !self.is_recovery() && self != Code::StateError
    }

    /// Whether it is a step of the recovery after a crash.
    #[must_use]
    pub fn is_recovery(self) -> bool {
        matches!(self, Code::JournalReplay | Code::OrphanInode | Code::OrphanTruncate | Code::OrphanPresent)
    }

    /// Whether its repair can bring no other problem to light, so that nobody need look again for its sake.
    #[must_use]
    pub fn is_final(self) -> bool {
        !self.is_damage() || matches!(self, Code::FreeBlocks | Code::FreeInodes | Code::StateNotValid)
    }
}

/// One finding. Which fields count is told by the text of its row.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Problem {
    /// Its kind.
    pub code: Code,
    /// The inode (in pass 2 the directory).
    pub ino: Option<Ino>,
    /// The block.
    pub block: Option<BlockNo>,
    /// The group.
    pub group: Option<GroupNo>,
    /// A name or a short reason.
    pub name: Option<String>,
    /// The value found.
    pub found: u64,
    /// The value expected.
    pub expected: u64,
}

impl Problem {
    /// A problem of this kind, with nothing known about it yet.
    #[must_use]
    pub fn new(code: Code) -> Problem {
        Problem { code, ino: None, block: None, group: None, name: None, found: 0, expected: 0 }
    }

    /// A problem of an inode.
    #[must_use]
    pub fn of(code: Code, ino: Ino) -> Problem {
        Problem { ino: Some(ino), ..Problem::new(code) }
    }

    /// A problem of a group.
    #[must_use]
    pub fn of_group(code: Code, group: GroupNo) -> Problem {
        Problem { group: Some(group), ..Problem::new(code) }
    }

    /// With its block.
    #[must_use]
    pub fn at(mut self, block: BlockNo) -> Problem {
        self.block = Some(block);
        self
    }

    /// With a name or a reason; bytes that are no text are shown as such.
    #[must_use]
    pub fn named(mut self, name: impl AsRef<[u8]>) -> Problem {
        self.name = Some(String::from_utf8_lossy(name.as_ref()).into_owned());
        self
    }

    /// With the value found and the one expected.
    #[must_use]
    pub fn values(mut self, found: impl Into<u64>, expected: impl Into<u64>) -> Problem {
        (self.found, self.expected) = (found.into(), expected.into());
        self
    }

    /// The text of the finding.
    #[must_use]
    pub fn text(&self) -> String {
        self.text_with(None)
    }

    /// The text of the finding, with the path of its inode beside the number.
    #[must_use]
    pub fn text_with(&self, path: Option<&str>) -> String {
        let mut text = self.code.row().text.to_owned();
        let printable = |text: &str| text.replace(char::is_control, "?");
        let number = |n: Option<u64>| n.map_or_else(|| "?".to_owned(), |n| n.to_string());
        let mut ino = number(self.ino.map(|ino| ino.get().into()));
        if let Some(path) = path {
            ino += &format!(" ({})", printable(path));
        }
        for (place, value) in [
            ("{ino}", ino),
            ("{block}", number(self.block.map(|block| block.0))),
            ("{group}", number(self.group.map(|group| group.0.into()))),
            ("{found}", self.found.to_string()),
            ("{expected}", self.expected.to_string()),
            ("{found:x}", format!("{:#x}", self.found)),
            ("{expected:x}", format!("{:#x}", self.expected)),
            ("{found:o}", format!("{:#o}", self.found)),
            ("{name}", self.name.as_deref().map(printable).unwrap_or_default()),
        ] {
            if text.contains(place) {
                text = text.replace(place, &value);
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn names_are_unique_and_texts_can_be_filled() {
        let mut names = HashSet::new();
        for code in Code::ALL {
            assert!(names.insert(code.row().name), "{}", code.row().name);
            let problem = Problem::of(*code, Ino::ROOT).named("x").at(BlockNo(1)).values(1_u32, 2_u32);
            let problem = Problem { group: Some(GroupNo(3)), ..problem };
            assert!(!problem.text().contains(['{', '}']), "{}", problem.text());
        }
    }
}
