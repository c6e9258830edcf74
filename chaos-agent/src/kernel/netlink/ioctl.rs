//! What is asked of a device by ioctl: what rtnetlink cannot do, or does only under its lock.

use std::ffi::c_char;
use std::io;
use std::os::fd::AsRawFd;

use nix::libc;

use super::Netlink;

// linux/sockios.h and linux/ethtool.h
const SIOCGIFINDEX: u32 = 0x8933;
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
        let mut request = request(device);
        request.ifr_ifru.ifru_data = (&raw mut value).cast();
        // SAFETY: the request names a `Value` that lives as long as the call.
        unsafe { self.ioctl(SIOCETHTOOL, &mut request) }
    }

    /// Index of the device of this name, which should be there: for one that is not the kernel tries to load
    /// a module (`dev_load`, net/core/dev_ioctl.c). It takes no lock, unlike [`Self::link`], which waits for
    /// a program that is being attached.
    ///
    /// # Errors
    /// ENODEV, or what else the kernel answers.
    pub fn index(&self, device: &str) -> io::Result<u32> {
        let mut request = request(device);
        // SAFETY: the kernel writes a number into the request, which has no pointer.
        unsafe { self.ioctl(SIOCGIFINDEX, &mut request) }?;
        // SAFETY: all bits are valid for a number, and they have been zeroed, then written.
        let index = unsafe { request.ifr_ifru.ifru_ifindex };
        Ok(index.cast_unsigned())
    }

    /// # Safety
    /// What the request has a pointer to must be what this command expects.
    unsafe fn ioctl(&self, command: u32, request: &mut libc::ifreq) -> io::Result<()> {
        // Any socket of the namespace will do (`sock_do_ioctl`, net/socket.c).
        let socket = self.socket.as_raw_fd();
        // SAFETY: the request lives as long as the call; the rest is the caller's.
        let answer = unsafe { libc::ioctl(socket, command as _, &raw mut *request) };
        if answer == 0 {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    }
}

/// One about the device of this name.
fn request(device: &str) -> libc::ifreq {
    // SAFETY: all its members are integers, arrays of them or pointers, which may be zero.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // One byte stays zero: the end of the name.
    let places = request.ifr_name.iter_mut().take(libc::IFNAMSIZ - 1);
    for (place, byte) in places.zip(device.bytes()) {
        *place = byte as c_char;
    }
    request
}
