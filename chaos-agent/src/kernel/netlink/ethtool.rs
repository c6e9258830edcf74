//! What rtnetlink cannot change of a device: its offloads, by the ioctl of ethtool.

use std::ffi::c_char;
use std::io;
use std::os::fd::AsRawFd;

use nix::libc;

use super::Netlink;

// linux/sockios.h and linux/ethtool.h
const SIOCETHTOOL: u32 = 0x8946;
const ETHTOOL_STXCSUM: u32 = 0x17;

/// `struct ethtool_value`
#[repr(C)]
struct Value {
    command: u32,
    data: u32,
}

impl Netlink {
    /// Has the kernel compute the checksums of what a device sends, in software. Segments are cut
    /// then as well (`netdev_fix_features`, net/core/dev.c).
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn compute_checksums(&mut self, device: &str) -> io::Result<()> {
        let mut value = Value {
            command: ETHTOOL_STXCSUM,
            data: 0,
        };
        // SAFETY: all its members are integers, arrays of them or pointers, which may be zero.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        // One byte stays zero: the end of the name.
        let places = request.ifr_name.iter_mut().take(libc::IFNAMSIZ - 1);
        for (place, byte) in places.zip(device.bytes()) {
            *place = byte as c_char;
        }
        request.ifr_ifru.ifru_data = (&raw mut value).cast();
        // Any socket of the namespace will do (`sock_do_ioctl`, net/socket.c).
        let socket = self.socket.as_raw_fd();
        // SAFETY: the request names a `Value` that lives as long as the call.
        let answer = unsafe { libc::ioctl(socket, SIOCETHTOOL as _, &raw mut request) };
        if answer == 0 {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    }
}
