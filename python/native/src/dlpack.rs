//! Tensors of bf16 by DLPack, for which numpy has no type: <https://dmlc.github.io/dlpack/latest/c_api.html>, version 0.8, the one
//! that every consumer takes. The two structs are laid out as `dlpack.h` has them.

use std::ffi::{CStr, c_void};

use numpy::{PyArrayDyn, PyArrayMethods, PyUntypedArrayMethods};
use pyo3::ffi;
use pyo3::prelude::*;

/// The name of a capsule that nobody has taken the tensor of.
const NAME: &CStr = c"dltensor";

/// `kDLCPU`.
const CPU: i32 = 1;

/// `kDLBfloat`.
const BFLOAT: u8 = 4;

/// `DLTensor`.
#[repr(C)]
struct Tensor {
    data: *mut c_void,
    device_type: i32,
    device_id: i32,
    dimensions: i32,
    code: u8,
    bits: u8,
    lanes: u16,
    shape: *mut i64,
    /// In numbers.
    strides: *mut i64,
    byte_offset: u64,
}

/// `DLManagedTensor`, and what it keeps alive.
#[repr(C)]
struct Managed {
    tensor: Tensor,
    context: *mut c_void,
    deleter: Option<unsafe extern "C" fn(*mut Managed)>,
    shape: Vec<i64>,
    strides: Vec<i64>,
    array: Py<PyArrayDyn<u16>>,
}

/// A tensor of bf16 on the CPU, from its bits.
#[pyclass(frozen, module = "doublecheck._native")]
pub struct Bfloat16 {
    array: Py<PyArrayDyn<u16>>,
}

#[pymethods]
impl Bfloat16 {
    #[new]
    fn new(array: Py<PyArrayDyn<u16>>) -> Self {
        Self { array }
    }

    /// A capsule with the tensor, whose memory is that of the array. Nothing is copied, whatever is asked for.
    #[pyo3(signature = (**_options))]
    #[allow(unsafe_code)]
    fn __dlpack__<'py>(
        &self,
        py: Python<'py>,
        _options: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let array = self.array.bind(py);
        let data = array.data().cast();
        let shape: Vec<i64> = array.shape().iter().map(|&size| size as i64).collect();
        let strides = array.strides().iter().map(|&bytes| bytes as i64 / 2).collect();
        let tensor = Tensor {
            data,
            device_type: CPU,
            device_id: 0,
            dimensions: shape.len() as i32,
            code: BFLOAT,
            bits: 16,
            lanes: 1,
            shape: std::ptr::null_mut(),
            strides: std::ptr::null_mut(),
            byte_offset: 0,
        };
        let context = std::ptr::null_mut();
        let array = self.array.clone_ref(py);
        let mut managed = Box::new(Managed { tensor, context, deleter: Some(delete), shape, strides, array });
        managed.tensor.shape = managed.shape.as_mut_ptr();
        managed.tensor.strides = managed.strides.as_mut_ptr();
        let managed = Box::into_raw(managed);
        // SAFETY: the pointer is that of a box, which whoever takes the tensor, or else the capsule, deletes once.
        unsafe {
            let capsule = ffi::PyCapsule_New(managed.cast(), NAME.as_ptr(), Some(end_capsule));
            if capsule.is_null() {
                delete(managed);
            }
            Bound::from_owned_ptr_or_err(py, capsule)
        }
    }

    fn __dlpack_device__(&self) -> (i32, i32) {
        (CPU, 0)
    }
}

/// Deletes a tensor that nobody needs any more.
#[allow(unsafe_code)]
unsafe extern "C" fn delete(managed: *mut Managed) {
    // SAFETY: it is called once, with what `Box::into_raw` gave.
    Python::attach(|_| drop(unsafe { Box::from_raw(managed) }));
}

/// Deletes the tensor of a capsule that nobody took it from; otherwise the capsule has another name.
#[allow(unsafe_code)]
unsafe extern "C" fn end_capsule(capsule: *mut ffi::PyObject) {
    // SAFETY: the capsule is one of `__dlpack__`, and by its name still has its pointer.
    unsafe {
        if ffi::PyCapsule_IsValid(capsule, NAME.as_ptr()) == 1 {
            delete(ffi::PyCapsule_GetPointer(capsule, NAME.as_ptr()).cast());
        }
    }
}
