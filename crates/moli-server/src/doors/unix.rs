//! A socket in the file system: for programs on the same machine, by the rights of its file.

use std::io;
use std::path::Path;

use crate::error::ServerError;

#[cfg(unix)]
pub(crate) use imp::UnixDoor;

/// There are none here.
#[cfg(not(unix))]
#[derive(Debug)]
pub(crate) enum UnixDoor {}

#[cfg(not(unix))]
impl UnixDoor {
    pub(crate) fn bind(path: &Path, _: u32) -> Result<Self, ServerError> {
        Err(ServerError::Unix { path: path.to_owned(), source: io::ErrorKind::Unsupported.into() })
    }
}

#[cfg(unix)]
mod imp {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
    use std::os::unix::net::{UnixListener, UnixStream};
    use std::path::PathBuf;

    use super::{Path, ServerError, io};

    /// A socket that listens at a path. Its file goes with it.
    #[derive(Debug)]
    pub(crate) struct UnixDoor {
        listener: UnixListener,
        path: PathBuf,
        /// Device and number of the file: another one in its place is not ours to remove.
        file: (u64, u64),
    }

    impl UnixDoor {
        /// Listens at a path, where a socket that nobody listens at any more may be.
        ///
        /// # Errors
        /// [`ServerError::Unix`]; also where somebody listens, or the file is no socket.
        pub(crate) fn bind(path: &Path, mode: u32) -> Result<Self, ServerError> {
            Self::open(path, mode).map_err(|source| ServerError::Unix { path: path.to_owned(), source })
        }

        fn open(path: &Path, mode: u32) -> io::Result<Self> {
            remove_stale(path)?;
            let listener = UnixListener::bind(path)?;
            let metadata = fs::symlink_metadata(path)?;
            let door = Self { listener, path: path.to_owned(), file: (metadata.dev(), metadata.ino()) };
            fs::set_permissions(path, Permissions::from_mode(mode))?;
            door.listener.set_nonblocking(true)?;
            Ok(door)
        }

        /// The same for the runtime that this is called in.
        pub(crate) fn listener(&self) -> io::Result<tokio::net::UnixListener> {
            tokio::net::UnixListener::from_std(self.listener.try_clone()?)
        }
    }

    fn remove_stale(path: &Path) -> io::Result<()> {
        match fs::symlink_metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
            Ok(metadata) if !metadata.file_type().is_socket() => {
                Err(io::Error::new(io::ErrorKind::AlreadyExists, "a file that is no socket is there"))
            }
            Ok(_) => match UnixStream::connect(path) {
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path),
                Err(error) => Err(error),
                Ok(_) => Err(io::Error::new(io::ErrorKind::AddrInUse, "another server listens there")),
            },
        }
    }

    impl Drop for UnixDoor {
        fn drop(&mut self) {
            let own = |metadata: fs::Metadata| (metadata.dev(), metadata.ino()) == self.file;
            if fs::symlink_metadata(&self.path).is_ok_and(own) {
                let _ = fs::remove_file(&self.path);
            }
        }
    }
}
