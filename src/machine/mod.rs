//! What the board is: capacity, operating system, kernel, boot and machine ids.
