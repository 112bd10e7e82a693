//! Whether the programs can see that an application has read what came to it by shortcut. In: this kernel. Out: where its
//! structures have that, if it tells, and lets a program read them: lockdown(7) may forbid that.

use std::io;

use mesh_common::shortcut::queue::Offsets;

use super::asm::{Asm, FP, R1, R2, R3, helper};
use crate::kernel::bpf::{self, Kind};
use crate::kernel::btf;

/// Where the queue is found.
pub fn offsets() -> io::Result<Offsets> {
    let told =
        btf::kernel_offsets([("sock_common", "skc_cookie"), ("sock", "sk_user_data"), ("sk_psock", "ingress_msg")]);
    let Some([Ok(cookie), Ok(user_data), Ok(queue)]) = told.map(|told| told.map(u16::try_from)) else {
        return Err(io::Error::other("the kernel does not tell its structures (/sys/kernel/btf/vmlinux)"));
    };
    let reads = Asm::new().copy(R1, FP).add(R1, -8).set(R2, 8).set(R3, 0).call(helper::PROBE_READ_KERNEL);
    bpf::load(Kind::SkMsg, 0, "mesh_probe", &reads.end(1))?;
    Ok(Offsets { cookie, user_data, queue })
}
