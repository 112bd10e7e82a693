//! Keys and values of the maps of shortcuts, as [`super`] has them of all others. In and out: nothing, these are declarations.
//! No field is ever padding.

use super::Direct;
use crate::addr::Endpoint;
use crate::shortcut::Half;

/// In [`Agent::link`](super::Agent::link): there is to be a shortcut.
pub const LINK_WANTED: u64 = u64::MAX;

/// In [`Short::side`] and [`End::side`]: who connected.
pub const SIDE_CLIENT: u32 = 0;
/// In [`Short::side`] and [`End::side`]: who accepted.
pub const SIDE_SERVER: u32 = 1;

/// Which end of which shortcut a socket is. The value of its SHORT storage.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Short {
    /// The connection: the cookie of the socket that connected. 0: there is to be a shortcut.
    pub id: u64,
    /// `SIDE_CLIENT` or `SIDE_SERVER`.
    pub side: u32,
    /// Who reads what this socket sends: a [`Reader`](crate::shortcut::Reader) as u32.
    pub reader: u32,
}

/// One end of a shortcut. The key of SHORT_SOCKETS.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct End {
    /// The connection.
    pub id: u64,
    /// `SIDE_CLIENT` or `SIDE_SERVER`.
    pub side: u32,
    /// 0; in the place of padding.
    pub zero: u32,
}

/// The name of the programs' constant that says where the kernel's structures have what [`queue`](crate::shortcut::queue) looks at.
pub const QUEUE: &str = "QUEUE";

/// A socket at an end of a shortcut, as the kernel has it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Its address in the kernel's memory; 0 before it has joined.
    pub address: u64,
    /// Its cookie, by which it is told from another at the same address.
    pub cookie: u64,
}

/// A connection with a shortcut: what its client sends, and its server.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shortcut {
    /// From `SIDE_CLIENT`.
    pub client: Half,
    /// From `SIDE_SERVER`.
    pub server: Half,
    /// Of a direct connection: its record when it began. Else all 0.
    pub direct: Direct,
    /// Of a direct connection: the server's end. Else [`Endpoint::ZERO`].
    pub to: Endpoint,
    /// 0; in the place of padding.
    pub zero: u32,
    /// The sockets, by `SIDE_CLIENT` and `SIDE_SERVER`.
    pub sockets: [Place; 2],
}

impl Shortcut {
    /// Nothing sent yet, and not direct.
    pub const NEW: Shortcut = Shortcut {
        client: Half::NEW,
        server: Half::NEW,
        direct: Direct {
            client: 0,
            server: 0,
            generation: 0,
            sequence: 0,
            stage: 0,
            to: Endpoint::ZERO,
            received: 0,
            link: 0,
        },
        to: Endpoint::ZERO,
        zero: 0,
        sockets: [Place { address: 0, cookie: 0 }; 2],
    };
}

const _: () = {
    assert!(size_of::<Short>() == 16 && size_of::<End>() == 16);
    assert!(
        size_of::<Half>() == 64
            && size_of::<Shortcut>() == 248
            && core::mem::offset_of!(Shortcut, zero) == 212
            && align_of::<Shortcut>() == 8
    );
};
