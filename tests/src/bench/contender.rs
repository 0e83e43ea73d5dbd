//! Who is measured: a system, and for ours the door that its requests come through. Each is a column of the
//! table.

use crate::system::System;

/// A column.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Contender {
    /// What `--against` and the table call it.
    pub name: &'static str,
    /// The system.
    pub system: System,
    /// What rext4's `transport=` is set to, unless the other options shall decide.
    pub transport: Option<&'static str>,
}

const fn column(name: &'static str, system: System, transport: Option<&'static str>) -> Contender {
    Contender { name, system, transport }
}

/// All that there are.
pub const KNOWN: [Contender; 10] = [
    column("kernel", System::Kernel, None),
    column("fuse2fs", System::Fuse2fs, None),
    column("rext4", System::Rext4Image, None),
    column("rext4:fuser", System::Rext4Image, Some("fuser")),
    column("rext4:dev", System::Rext4Image, Some("dev")),
    column("rext4:ring", System::Rext4Image, Some("ring")),
    column("rext4-loop", System::Rext4Loop, None),
    column("rext4-loop:fuser", System::Rext4Loop, Some("fuser")),
    column("rext4-loop:dev", System::Rext4Loop, Some("dev")),
    column("rext4-loop:ring", System::Rext4Loop, Some("ring")),
];

impl Contender {
    /// The one of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Contender> {
        KNOWN.into_iter().find(|known| known.name == name)
    }

    /// `-o` words: those given for rext4, and the transport.
    #[must_use]
    pub fn options(&self, given: &[String]) -> Vec<String> {
        if !self.system.is_rext4() {
            return Vec::new();
        }
        let transport = self.transport.map(|transport| format!("transport={transport}"));
        given.iter().cloned().chain(transport).collect()
    }
}
