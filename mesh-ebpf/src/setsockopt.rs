//! cgroup/setsockopt. In: an option that somebody sets on a socket. Out: EPERM where it would let what the socket sends
//! go by an interface's driver without passing `egress`, or does not go with the socket's shortcut. Never changes a value;
//! for every other option the kernel reads the caller's own bytes, not the copy for this program, which ends after a page.

use aya_ebpf::programs::SockoptContext;
use mesh_common::abi::{Counter, Tuple};
use mesh_common::addr::Endpoint;
use mesh_common::{egress, shortcut};

use crate::maps::{SHORT, WORKLOADS};
use crate::report::tell;
use crate::socket::netns;

const ALLOW: i32 = 1;
/// The system call fails with EPERM.
const DENY: i32 = 0;

pub fn run(ctx: &SockoptContext) -> i32 {
    // SAFETY: fields of the context; a length of 0 says that the value is as it was.
    let (level, name) = unsafe {
        let option = &mut *ctx.sockopt;
        option.optlen = 0;
        (option.level, option.optname)
    };
    if shortcut::refuses(level, name) {
        // SAFETY: a field of the context.
        let sk = unsafe { (*ctx.sockopt).__bindgen_anon_1.sk };
        let refused = !sk.is_null() && SHORT.get(sk).is_some_and(|short| short.id != 0);
        return if refused { DENY } else { ALLOW };
    }
    if !egress::goes_around(level, name) {
        return ALLOW;
    }
    let netns = netns(ctx);
    // SAFETY: the agent replaces whole entries, and a replaced one stays readable until this program has ended.
    let Some(workload) = (unsafe { WORKLOADS.get(netns) }) else { return ALLOW };
    tell(Counter::OptionRefused, workload.id, &Tuple { netns, client: Endpoint::ZERO, server: Endpoint::ZERO });
    DENY
}
