# Every kernel borrows the memory of its arguments, checks the lengths once, runs, returns it.  A typed memoryview
# argument costs 100 to 150 ns to open, this 20: as much as the kernels themselves.

cdef Py_ssize_t borrow(object source, Py_buffer *view, int item, int flags=PyBUF_SIMPLE) except -1:
    """How many items of `item` bytes `source` holds (1: any memory).  After an error nothing is left to release."""
    PyObject_GetBuffer(source, view, flags)
    if view.len % item or (item > 1 and view.itemsize != item and view.itemsize != 1):
        size = view.itemsize
        PyBuffer_Release(view)
        raise ValueError(f"items of {item} bytes wanted, not {size}")
    return view.len // item


cdef Py_ssize_t borrow_two(object source, Py_buffer *src, int src_item, object target, Py_buffer *dst, int dst_item,
                           ) except -1:
    """The count of items of `source`; `target` has room for one item for each, or it is a ValueError."""
    cdef Py_ssize_t count = borrow(source, src, src_item), room
    try:
        room = borrow(target, dst, dst_item, PyBUF_WRITABLE)
    except BaseException:
        PyBuffer_Release(src)
        raise
    if room < count:
        PyBuffer_Release(src)
        PyBuffer_Release(dst)
        raise ValueError(f"dst has room for {room} items, {count} wanted")
    return count
