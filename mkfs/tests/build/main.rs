//! The image builder, from outside: what it builds is judged by e2fsck, by fsck.rext4 and by the kernel, which
//! mounts it and shows the tree.

mod hostile;
mod layers;
mod model;
mod options;
mod shapes;
mod sizes;
mod support;
mod trees;
