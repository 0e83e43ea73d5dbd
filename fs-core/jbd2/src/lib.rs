//! Floor 2: how several blocks change together. Knows no inode.
