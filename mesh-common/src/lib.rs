//! What the kernel programs and the agent share: map keys and values ([`abi`]), addresses in the form in which the maps
//! hold them ([`addr`]), and the decisions that the programs take ([`capture`], [`direct`],
//! [`egress`], [`udp`], [`dns`], [`shortcut`], [`host`]), and what they read of a socket's counts ([`tcp`]). In: plain
//! values. Out: plain values. No std, no allocation, no map access, no I/O: everything here runs in the kernel as well as in a test on the host.

#![no_std]

pub mod abi;
pub mod addr;
pub mod capture;
pub mod direct;
pub mod dns;
pub mod egress;
pub mod host;
pub mod shortcut;
pub mod tcp;
pub mod udp;
