//! What the C library's heap keeps of memory that was freed.

/// Has large buffers go back to the system when they are freed, now and later. Left alone, glibc keeps them
/// in the heaps of its threads once the first of their size was freed, and a server that writes at full
/// speed grows to several times what it uses. Other C libraries have no such habit.
pub fn give_back_large() {
    #[cfg(target_env = "gnu")]
    {
        /// Bytes; what glibc begins with. That it is set is what keeps it from growing.
        const LARGE: libc::c_int = 128 << 10;
        // SAFETY: changes a number of the allocator; any value is allowed at any time.
        unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE) };
    }
}
