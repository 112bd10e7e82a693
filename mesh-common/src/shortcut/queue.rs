//! Whether an application has read everything that came by shortcut, as the kernel's own structures tell: the queue is a list
//! (`ingress_msg`) in what the socket keeps for a socket map (`struct sk_psock`, at `sk_user_data`). In: where these stand on
//! this kernel, and a way to read its memory. Out: whether the list is empty. A socket that is not found again, and whatever
//! cannot be read, is nothing that is known to be empty.

/// What the kernel marks a pointer to a `sk_psock` with, in `sk_user_data` (`SK_USER_DATA_PSOCK`, include/net/sock.h).
const PSOCK: u64 = 4;
/// All the marks that there are.
const MARKS: u64 = 7;

/// Where the members stand, in bytes. As one number it is the constant [`QUEUE`](crate::abi::QUEUE) of the programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offsets {
    /// Of `skc_cookie` in a `struct sock`.
    pub cookie: u16,
    /// Of `sk_user_data` in it.
    pub user_data: u16,
    /// Of `ingress_msg` in a `struct sk_psock`.
    pub queue: u16,
}

impl Offsets {
    /// Never 0, which says that nothing is known.
    pub const fn pack(self) -> u64 {
        1 | (self.cookie as u64) << 16 | (self.user_data as u64) << 32 | (self.queue as u64) << 48
    }
}

/// Whether nothing waits in the queue of the socket at `address` with this cookie. `at` are packed [`Offsets`] or 0. `read`
/// reads eight bytes of the kernel's memory.
#[inline(always)]
pub fn is_empty(at: u64, address: u64, cookie: u64, mut read: impl FnMut(u64) -> Option<u64>) -> bool {
    let (cookies, user_data, queue) = (at >> 16 & 0xffff, at >> 32 & 0xffff, at >> 48);
    if at == 0 || address == 0 || read(address.wrapping_add(cookies)) != Some(cookie) {
        return false;
    }
    let Some(kept) = read(address.wrapping_add(user_data)) else { return false };
    if kept & PSOCK == 0 {
        return false;
    }
    let list = (kept & !MARKS).wrapping_add(queue);
    read(list) == Some(list)
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: u64 = Offsets { cookie: 96, user_data: 700, queue: 48 }.pack();
    const SOCKET: u64 = 0xffff_8880_0000_1000;
    const PLACE: u64 = 0xffff_8880_0000_2000;

    /// A memory in which the socket is number 7 and its list begins with this.
    fn memory(kept: u64, first: u64) -> impl FnMut(u64) -> Option<u64> {
        move |address| match address {
            a if a == SOCKET + 96 => Some(7),
            a if a == SOCKET + 700 => Some(kept),
            a if a == PLACE + 48 => Some(first),
            _ => None,
        }
    }

    #[test]
    fn a_list_that_leads_to_itself_is_empty() {
        assert!(is_empty(AT, SOCKET, 7, memory(PLACE | PSOCK, PLACE + 48)));
        // Not to be inherited by a socket that is accepted from this one, which is no concern here.
        assert!(is_empty(AT, SOCKET, 7, memory(PLACE | PSOCK | 1, PLACE + 48)));
        assert!(!is_empty(AT, SOCKET, 7, memory(PLACE | PSOCK, PLACE + 1000)));
    }

    #[test]
    fn what_is_not_known_is_not_empty() {
        for (at, socket, cookie, kept) in [
            (0, SOCKET, 7, PLACE | PSOCK),
            (AT, 0, 7, PLACE | PSOCK),
            (AT, SOCKET, 8, PLACE | PSOCK),
            (AT, SOCKET + 8, 7, PLACE | PSOCK),
            (AT, SOCKET, 7, PLACE),
            (AT, SOCKET, 7, PLACE | 3),
            (AT, SOCKET, 7, 0),
            (AT, SOCKET, 7, PSOCK),
            (AT, u64::MAX, 7, PLACE | PSOCK),
        ] {
            assert!(!is_empty(at, socket, cookie, memory(kept, PLACE + 48)), "{at:x} {socket:x} {cookie} {kept:x}");
        }
    }
}
