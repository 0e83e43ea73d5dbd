//! Reading requests. Nothing of a message is trusted: lengths, names and counts are checked against
//! the bytes that are there, and what does not add up is [`Malformed`].

use zerocopy::{FromBytes, Immutable, KnownLayout};

use super::abi::{self, InHeader, opcode};

/// A message that does not follow the protocol. It is answered with EIO, if it can be answered.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("a request that does not follow the protocol")]
pub struct Malformed;

type Parsed<T> = Result<T, Malformed>;

/// The bytes behind a request's header. Over /dev/fuse structure, names and data follow each
/// other; on a ring the structure has a place of its own.
#[derive(Clone, Copy, Debug)]
pub struct Body<'a> {
    fixed: &'a [u8],
    payload: Option<&'a [u8]>,
}

impl<'a> Body<'a> {
    /// All in one piece.
    #[must_use]
    pub fn joined(bytes: &'a [u8]) -> Body<'a> {
        Body { fixed: bytes, payload: None }
    }

    /// The operation's structure (and possibly more bytes behind it), and all the rest.
    #[must_use]
    pub fn split(fixed: &'a [u8], payload: &'a [u8]) -> Body<'a> {
        Body { fixed, payload: Some(payload) }
    }

    fn structure<T: FromBytes + KnownLayout + Immutable>(self) -> Parsed<(T, Fields<'a>)> {
        let (value, rest) = T::read_from_prefix(self.fixed).map_err(|_| Malformed)?;
        Ok((value, Fields(self.payload.unwrap_or(rest))))
    }

    fn fields(self) -> Fields<'a> {
        Fields(self.payload.unwrap_or(self.fixed))
    }
}

/// Names and data, taken from the front.
#[derive(Clone, Copy)]
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    /// A name up to its zero.
    fn name(&mut self) -> Parsed<&'a [u8]> {
        let end = self.0.iter().position(|&byte| byte == 0).ok_or(Malformed)?;
        let (name, rest) = self.0.split_at(end);
        self.0 = &rest[1..];
        Ok(name)
    }

    fn bytes(&mut self, len: u32) -> Parsed<&'a [u8]> {
        let (bytes, rest) = self.0.split_at_checked(len as usize).ok_or(Malformed)?;
        self.0 = rest;
        Ok(bytes)
    }

    fn structure<T: FromBytes + KnownLayout + Immutable>(&mut self) -> Parsed<T> {
        let (value, rest) = T::read_from_prefix(self.0).map_err(|_| Malformed)?;
        self.0 = rest;
        Ok(value)
    }
}

/// A security label for a new file: an attribute's name and value.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Label<'a> {
    /// Full name of the extended attribute.
    pub name: &'a [u8],
    /// Its value.
    pub value: &'a [u8],
}

/// A name to be made, with the labels that its file gets.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NewName<'a> {
    /// The name.
    pub name: &'a [u8],
    /// Labels, mostly none.
    pub labels: Vec<Label<'a>>,
}

/// What a request asks for. Numbers are as the protocol has them.
#[derive(Clone, Debug)]
#[allow(missing_docs, reason = "the protocol's own names")]
pub enum Operation<'a> {
    Lookup(&'a [u8]),
    Forget(u64),
    BatchForget(Vec<abi::ForgetOne>),
    Getattr(abi::GetattrIn),
    Statx(abi::StatxIn),
    Setattr(abi::SetattrIn),
    Readlink,
    Symlink { new: NewName<'a>, target: &'a [u8] },
    Mknod { how: abi::MknodIn, new: NewName<'a> },
    Mkdir { how: abi::MkdirIn, new: NewName<'a> },
    Unlink(&'a [u8]),
    Rmdir(&'a [u8]),
    Rename { name: &'a [u8], to: u64, new_name: &'a [u8], flags: u32 },
    Link { node: u64, name: &'a [u8] },
    Open(abi::OpenIn),
    Create { how: abi::CreateIn, new: NewName<'a> },
    Tmpfile { how: abi::CreateIn, new: NewName<'a> },
    Read(abi::ReadIn),
    Write { how: abi::WriteIn, data: &'a [u8] },
    Release(abi::ReleaseIn),
    Fsync(abi::FsyncIn),
    Fsyncdir(abi::FsyncIn),
    Syncfs,
    Statfs,
    Readdir(abi::ReadIn),
    Readdirplus(abi::ReadIn),
    Setxattr { name: &'a [u8], value: &'a [u8], flags: u32, kill_sgid: Option<bool> },
    Getxattr { name: &'a [u8], room: u32 },
    Listxattr { room: u32 },
    Removexattr(&'a [u8]),
    Ioctl { how: abi::IoctlIn, input: &'a [u8] },
    Bmap(abi::BmapIn),
    Fallocate(abi::FallocateIn),
    Lseek(abi::LseekIn),
    CopyFileRange(abi::CopyFileRangeIn),
    CopyFileRange64(abi::CopyFileRangeIn),
    Init(abi::InitIn),
    Interrupt,
    Destroy,
    Unknown(u32),
}

/// A request.
#[derive(Clone, Debug)]
pub struct Request<'a> {
    /// Its header.
    pub header: InHeader,
    /// What it asks for.
    pub operation: Operation<'a>,
}

/// Takes the header off a message of /dev/fuse; gives it and what is behind it.
///
/// # Errors
/// When the message is shorter than its header or than the header says.
pub fn split_header(message: &[u8]) -> Parsed<(InHeader, &[u8])> {
    let (header, rest) = InHeader::read_from_prefix(message).map_err(|_| Malformed)?;
    if header.len as usize != message.len() {
        return Err(Malformed);
    }
    Ok((header, rest))
}

impl<'a> Request<'a> {
    /// Parses what is behind a header; `capabilities` are those that INIT has settled.
    ///
    /// # Errors
    /// When the bytes do not add up to what the operation needs.
    pub fn parse(header: InHeader, body: Body<'a>, capabilities: u64) -> Parsed<Request<'a>> {
        let operation = Operation::parse(&header, body, capabilities)?;
        Ok(Request { header, operation })
    }
}

impl<'a> Operation<'a> {
    fn parse(header: &InHeader, body: Body<'a>, capabilities: u64) -> Parsed<Operation<'a>> {
        let extended = header.total_extlen != 0;
        let name = || body.fields().name();
        Ok(match header.opcode {
            opcode::LOOKUP => Operation::Lookup(name()?),
            opcode::FORGET => Operation::Forget(body.structure::<abi::ForgetIn>()?.0.nlookup),
            opcode::BATCH_FORGET => {
                let (batch, mut fields) = body.structure::<abi::BatchForgetIn>()?;
                // Bounded by the message: each needs its bytes.
                let all = (0..batch.count).map(|_| fields.structure());
                Operation::BatchForget(all.collect::<Parsed<_>>()?)
            }
            opcode::GETATTR => Operation::Getattr(body.structure()?.0),
            opcode::STATX => Operation::Statx(body.structure()?.0),
            opcode::SETATTR => Operation::Setattr(body.structure()?.0),
            opcode::READLINK => Operation::Readlink,
            opcode::SYMLINK => {
                let mut fields = body.fields();
                let (name, target) = (fields.name()?, fields.name()?);
                Operation::Symlink { new: NewName::parse(name, fields, extended)?, target }
            }
            opcode::MKNOD => {
                let (how, fields) = body.structure()?;
                Operation::Mknod { how, new: NewName::take(fields, extended)? }
            }
            opcode::MKDIR => {
                let (how, fields) = body.structure()?;
                Operation::Mkdir { how, new: NewName::take(fields, extended)? }
            }
            opcode::UNLINK => Operation::Unlink(name()?),
            opcode::RMDIR => Operation::Rmdir(name()?),
            opcode::RENAME => {
                let (how, mut fields) = body.structure::<abi::RenameIn>()?;
                Operation::Rename { name: fields.name()?, to: how.newdir, new_name: fields.name()?, flags: 0 }
            }
            opcode::RENAME2 => {
                let (how, mut fields) = body.structure::<abi::Rename2In>()?;
                let (name, new_name) = (fields.name()?, fields.name()?);
                Operation::Rename { name, to: how.newdir, new_name, flags: how.flags }
            }
            opcode::LINK => {
                let (how, mut fields) = body.structure::<abi::LinkIn>()?;
                Operation::Link { node: how.oldnodeid, name: fields.name()? }
            }
            opcode::OPEN => Operation::Open(body.structure()?.0),
            opcode::CREATE => {
                let (how, fields) = body.structure()?;
                Operation::Create { how, new: NewName::take(fields, extended)? }
            }
            opcode::TMPFILE => {
                let (how, fields) = body.structure()?;
                Operation::Tmpfile { how, new: NewName::take(fields, extended)? }
            }
            opcode::READ => Operation::Read(body.structure()?.0),
            opcode::WRITE => {
                let (how, mut fields) = body.structure::<abi::WriteIn>()?;
                Operation::Write { how, data: fields.bytes(how.size)? }
            }
            opcode::RELEASE => Operation::Release(body.structure()?.0),
            opcode::FSYNC => Operation::Fsync(body.structure()?.0),
            opcode::FSYNCDIR => Operation::Fsyncdir(body.structure()?.0),
            opcode::SYNCFS => Operation::Syncfs,
            opcode::STATFS => Operation::Statfs,
            opcode::READDIR => Operation::Readdir(body.structure()?.0),
            opcode::READDIRPLUS => Operation::Readdirplus(body.structure()?.0),
            opcode::SETXATTR => Operation::parse_setxattr(body, capabilities)?,
            opcode::GETXATTR => {
                let (how, mut fields) = body.structure::<abi::GetxattrIn>()?;
                Operation::Getxattr { name: fields.name()?, room: how.size }
            }
            opcode::LISTXATTR => Operation::Listxattr { room: body.structure::<abi::GetxattrIn>()?.0.size },
            opcode::REMOVEXATTR => Operation::Removexattr(name()?),
            opcode::IOCTL => {
                let (how, mut fields) = body.structure::<abi::IoctlIn>()?;
                Operation::Ioctl { how, input: fields.bytes(how.in_size)? }
            }
            opcode::BMAP => Operation::Bmap(body.structure()?.0),
            opcode::FALLOCATE => Operation::Fallocate(body.structure()?.0),
            opcode::LSEEK => Operation::Lseek(body.structure()?.0),
            opcode::COPY_FILE_RANGE => Operation::CopyFileRange(body.structure()?.0),
            opcode::COPY_FILE_RANGE_64 => Operation::CopyFileRange64(body.structure()?.0),
            opcode::INIT => Operation::Init(body.structure()?.0),
            opcode::INTERRUPT => Operation::Interrupt,
            opcode::DESTROY => Operation::Destroy,
            other => Operation::Unknown(other),
        })
    }

    fn parse_setxattr(body: Body<'a>, capabilities: u64) -> Parsed<Operation<'a>> {
        let (size, flags, kill_sgid, mut fields) = if capabilities & abi::init::SETXATTR_EXT != 0 {
            let (how, fields) = body.structure::<abi::SetxattrIn>()?;
            let kills = how.setxattr_flags & abi::SETXATTR_ACL_KILL_SGID != 0;
            (how.size, how.flags, Some(kills), fields)
        } else {
            let (how, fields) = body.structure::<abi::SetxattrInShort>()?;
            (how.size, how.flags, None, fields)
        };
        Ok(Operation::Setxattr { name: fields.name()?, value: fields.bytes(size)?, flags, kill_sgid })
    }
}

impl<'a> NewName<'a> {
    fn take(mut fields: Fields<'a>, extended: bool) -> Parsed<NewName<'a>> {
        let name = fields.name()?;
        NewName::parse(name, fields, extended)
    }

    /// Reads the extensions behind the names. Types that are not known here are passed over.
    fn parse(name: &'a [u8], mut fields: Fields<'a>, extended: bool) -> Parsed<NewName<'a>> {
        let mut labels = Vec::new();
        while extended && !fields.0.is_empty() {
            let header: abi::ExtHeader = fields.structure()?;
            let len = header.size.checked_sub(size_of::<abi::ExtHeader>() as u32).ok_or(Malformed)?;
            let mut inner = Fields(fields.bytes(len)?);
            if header.kind > abi::MAX_SECURITY_CONTEXTS {
                continue;
            }
            for _ in 0..header.kind {
                let context: abi::SecurityContext = inner.structure()?;
                labels.push(Label { name: inner.name()?, value: inner.bytes(context.size)? });
            }
        }
        Ok(NewName { name, labels })
    }
}
