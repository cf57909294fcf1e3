//! Quantized two-dimensional convolution in integer arithmetic, as ONNX defines QLinearConv: int8 in, int8 out, sums in
//! int32, one rounding at the end. And two layers in f32 that tract is slow at: the fully connected one at batch 1
//! ([`Dense`]), and the depthwise convolution ([`Depthwise`]).
//!
//! Cast: the runtime's tract engine makes these of what it finds in a graph, at load, and runs them in operators of its own.
//! Nothing is called from here but the processor.
//!
//! Tensors of a [`Convolution`] are NHWC (channels innermost) without a batch: a pixel's channels lie side by side, which is
//! what its kernels read. Three ways through (`Plan`): pointwise (1 x 1, a matrix product as it lies), depthwise (one filter a
//! channel; module `depthwise`, in int8, where `planes` is the one in f32), and the rest by gathering each output pixel's window
//! into a row, then the matrix product.
//!
//! The sum of a window is exact, whatever the kernel: int8 products of at most 2^14 in an int32, so windows hold at most
//! [`WINDOW_MAX`] elements. It is scaled in f32, rounded to the nearest, ties to even, as ONNX Runtime does it
//! (`tests/properties.rs` holds every kernel against [`reference`], bit by bit).
//!
//! Architecture invariant: `unsafe` stands in the files of one instruction set only, each block with its reason.

#[cfg(target_arch = "x86_64")]
mod avx2;
mod bounds;
mod convolution;
mod dense;
mod depthwise;
mod gemm;
mod isa;
mod layout;
#[cfg(target_arch = "aarch64")]
mod neon;
mod planes;
mod reference;
mod requantize;
#[cfg(target_arch = "x86_64")]
mod vnni;

pub use bounds::Bounds;
pub use convolution::{Convolution, Invalid, Scratch, Shape, WINDOW_MAX, Weights};
pub use dense::Dense;
pub use isa::Isa;
pub use layout::{channels_first, channels_last};
pub use planes::{Depthwise, Order};
pub use reference::reference;
pub use requantize::Requantize;
