//! Keys and values of all layers, in pages.

use std::ops::Range;

use half::f16;
use moli_kernels::{KV_BLOCK, KvPages, KvPagesMut, PAGE_TOKENS, Zero};

use super::zeros;
use crate::{KvShape, KvType, ModelError};

/// Keys and values, each `[layer][page]`; what a page holds, [`KvPages`] says.
pub struct CpuCache {
    keys: Part,
    values: Part,
    layers: usize,
}

/// The keys or the values.
enum Part {
    F32(Paged<f32>),
    F16(Paged<f16>),
    Q8_0 { quants: Paged<i8>, scales: Paged<f16> },
}

/// Elements `[layer][page][element]`.
struct Paged<T> {
    elements: Vec<T>,
    /// Of each layer its first element, and the elements of a page in it.
    layers: Vec<(usize, usize)>,
    pages: usize,
}

impl CpuCache {
    /// Zeros.
    ///
    /// # Errors
    /// [`ModelError::TooLarge`].
    pub(super) fn new(layers: &[KvShape], pages: usize, kv_type: KvType) -> Result<Self, ModelError> {
        let elements = |shape: &KvShape| shape.heads.saturating_mul(shape.head_dim);
        let scales = |shape: &KvShape| shape.heads.saturating_mul(shape.head_dim.div_ceil(KV_BLOCK));
        let part = || -> Result<Part, ModelError> {
            Ok(match kv_type {
                KvType::F32 => Part::F32(Paged::new(layers.iter().map(elements), pages)?),
                KvType::F16 => Part::F16(Paged::new(layers.iter().map(elements), pages)?),
                KvType::Q8_0 => Part::Q8_0 {
                    quants: Paged::new(layers.iter().map(elements), pages)?,
                    scales: Paged::new(layers.iter().map(scales), pages)?,
                },
            })
        };
        Ok(Self { keys: part()?, values: part()?, layers: layers.len() })
    }

    /// The keys and the values of a layer.
    pub(super) fn layer(&self, layer: usize) -> (KvPages<'_>, KvPages<'_>) {
        (self.keys.layer(layer), self.values.layer(layer))
    }

    /// [`layer`](Self::layer) to write to.
    pub(super) fn layer_mut(&mut self, layer: usize) -> (KvPagesMut<'_>, KvPagesMut<'_>) {
        (self.keys.layer_mut(layer), self.values.layer_mut(layer))
    }

    /// The type of its numbers.
    pub(super) fn kv_type(&self) -> KvType {
        match self.keys {
            Part::F32(_) => KvType::F32,
            Part::F16(_) => KvType::F16,
            Part::Q8_0 { .. } => KvType::Q8_0,
        }
    }

    /// Bytes of a page in all layers.
    pub(super) fn page_bytes(&self) -> usize {
        let layer = |layer| self.arrays().map(|array| array.page_bytes(layer)).sum::<usize>();
        (0..self.layers).map(layer).sum()
    }

    /// Copies a page to another, in all layers. Both exist.
    pub(super) fn copy_page(&mut self, from: u32, to: u32) {
        for layer in 0..self.layers {
            self.arrays_mut().for_each(|array| array.copy(layer, from, to));
        }
    }

    /// Appends a page, layer by layer: its keys, then its values; in q8_0 of each the integers, then the scales.
    pub(super) fn read_page(&self, page: u32, out: &mut Vec<u8>) {
        for layer in 0..self.layers {
            self.arrays().for_each(|array| array.read(layer, page, out));
        }
    }

    /// The inverse of [`read_page`](Self::read_page).
    pub(super) fn write_page(&mut self, page: u32, mut bytes: &[u8]) {
        for layer in 0..self.layers {
            self.arrays_mut().for_each(|array| bytes = array.write(layer, page, bytes));
        }
    }

    fn arrays(&self) -> impl Iterator<Item = &dyn Array> {
        [&self.keys, &self.values].into_iter().flat_map(Part::arrays).flatten()
    }

    fn arrays_mut(&mut self) -> impl Iterator<Item = &mut dyn Array> {
        [&mut self.keys, &mut self.values].into_iter().flat_map(Part::arrays_mut).flatten()
    }
}

impl Part {
    fn layer(&self, layer: usize) -> KvPages<'_> {
        match self {
            Self::F32(all) => KvPages::F32(all.layer(layer)),
            Self::F16(all) => KvPages::F16(all.layer(layer)),
            Self::Q8_0 { quants, scales } => {
                KvPages::Q8_0 { quants: quants.layer(layer), scales: scales.layer(layer) }
            }
        }
    }

    fn layer_mut(&mut self, layer: usize) -> KvPagesMut<'_> {
        match self {
            Self::F32(all) => KvPagesMut::F32(all.layer_mut(layer)),
            Self::F16(all) => KvPagesMut::F16(all.layer_mut(layer)),
            Self::Q8_0 { quants, scales } => {
                KvPagesMut::Q8_0 { quants: quants.layer_mut(layer), scales: scales.layer_mut(layer) }
            }
        }
    }

    fn arrays(&self) -> [Option<&dyn Array>; 2] {
        match self {
            Self::F32(all) => [Some(all), None],
            Self::F16(all) => [Some(all), None],
            Self::Q8_0 { quants, scales } => [Some(quants), Some(scales)],
        }
    }

    fn arrays_mut(&mut self) -> [Option<&mut dyn Array>; 2] {
        match self {
            Self::F32(all) => [Some(all), None],
            Self::F16(all) => [Some(all), None],
            Self::Q8_0 { quants, scales } => [Some(quants), Some(scales)],
        }
    }
}

/// [`Paged`] numbers of some type.
trait Array {
    fn page_bytes(&self, layer: usize) -> usize;
    fn copy(&mut self, layer: usize, from: u32, to: u32);
    /// Appends a page's numbers, little-endian.
    fn read(&self, layer: usize, page: u32, out: &mut Vec<u8>);
    /// Takes a page's numbers from the front of `bytes`, and returns the rest.
    fn write<'a>(&mut self, layer: usize, page: u32, bytes: &'a [u8]) -> &'a [u8];
}

impl<T: Zero> Paged<T> {
    /// `widths`: of each layer the numbers of one token.
    fn new(widths: impl Iterator<Item = usize> + Clone, pages: usize) -> Result<Self, ModelError> {
        let total = widths.clone().fold(0, usize::saturating_add);
        let elements = zeros("the KV cache", &[total, PAGE_TOKENS, pages])?;
        let mut first = 0;
        let layers = widths.map(|width| {
            let layer = (first, width * PAGE_TOKENS);
            first += layer.1 * pages;
            layer
        });
        Ok(Self { layers: layers.collect(), elements, pages })
    }

    fn range(&self, layer: usize) -> Range<usize> {
        let (first, page) = self.layers[layer];
        first..first + page * self.pages
    }

    fn layer(&self, layer: usize) -> &[T] {
        &self.elements[self.range(layer)]
    }

    fn layer_mut(&mut self, layer: usize) -> &mut [T] {
        let range = self.range(layer);
        &mut self.elements[range]
    }

    fn page(&self, layer: usize, page: u32) -> Range<usize> {
        let (first, elements) = self.layers[layer];
        let start = first + page as usize * elements;
        start..start + elements
    }
}

macro_rules! arrays {
    ($($element:ty),*) => {$(
        impl Array for Paged<$element> {
            fn page_bytes(&self, layer: usize) -> usize {
                self.layers[layer].1 * size_of::<$element>()
            }

            fn copy(&mut self, layer: usize, from: u32, to: u32) {
                let (from, to) = (self.page(layer, from), self.page(layer, to));
                self.elements.copy_within(from, to.start);
            }

            fn read(&self, layer: usize, page: u32, out: &mut Vec<u8>) {
                let start = out.len();
                out.resize(start + self.page_bytes(layer), 0);
                // Whole numbers at a time, which the compiler makes one copy of.
                for (to, element) in out[start..].as_chunks_mut().0.iter_mut().zip(&self.elements[self.page(layer, page)]) {
                    *to = element.to_le_bytes();
                }
            }

            fn write<'a>(&mut self, layer: usize, page: u32, bytes: &'a [u8]) -> &'a [u8] {
                let (bytes, rest) = bytes.split_at(self.page_bytes(layer).min(bytes.len()));
                let page = self.page(layer, page);
                for (element, from) in self.elements[page].iter_mut().zip(bytes.as_chunks().0) {
                    *element = <$element>::from_le_bytes(*from);
                }
                rest
            }
        }
    )*};
}
arrays!(f32, f16, i8);
