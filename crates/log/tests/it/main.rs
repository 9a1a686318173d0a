//! Integration tests of the log.

mod crash;
mod disk_log;
mod file_disk;
mod golden;
mod memory_log;
mod support;
