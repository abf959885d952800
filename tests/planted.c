/* An extension that is right, or, built with -DOA_PLANTED_BUG, wrong in one byte and in one sum, and that decides by
   what nobody has written: it proves that the watchers would speak up.  Nothing but test_sanitized.py uses it. */
#include <Python.h>
#include <string.h>

#ifdef OA_PLANTED_BUG
#define TOO_MANY 2          /* bytes: the first of them is the zero that ends every bytes object */
#define WRITTEN 0
typedef int sum;
#else
#define TOO_MANY 0
#define WRITTEN 1
typedef long long sum;
#endif

/* fill(n): n bytes of 0x55. */
static PyObject *fill(PyObject *self, PyObject *count)
{
    Py_ssize_t n = PyLong_AsSsize_t(count);
    PyObject *made = n < 0 ? NULL : PyBytes_FromStringAndSize(NULL, n);
    if (made == NULL)
        return PyErr_Occurred() ? NULL : PyErr_Format(PyExc_ValueError, "a count is not negative");
    memset(PyBytes_AS_STRING(made), 0x55, n + TOO_MANY);
    return made;
}

/* twice(n): 2 n, for an n that fits in an int. */
static PyObject *twice(PyObject *self, PyObject *number)
{
    sum n = (sum)PyLong_AsLong(number);
    return PyErr_Occurred() ? NULL : PyLong_FromLongLong(n + n);
}

/* quiet(n): whether the last of n numbers is zero, which all of them are meant to be. */
static PyObject *quiet(PyObject *self, PyObject *count)
{
    Py_ssize_t n = PyLong_AsSsize_t(count);
    char *numbers = n > 0 ? PyMem_RawMalloc(n) : NULL;
    PyObject *found;
    if (numbers == NULL)
        return PyErr_Occurred() ? NULL : PyErr_Format(PyExc_ValueError, "a count is positive");
    memset(numbers, 0, n - 1 + WRITTEN);
    found = numbers[n - 1] ? Py_False : Py_True;
    PyMem_RawFree(numbers);
    return Py_NewRef(found);
}

static PyMethodDef functions[] = {{"fill", fill, METH_O, NULL}, {"twice", twice, METH_O, NULL},
                                  {"quiet", quiet, METH_O, NULL}, {NULL}};
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "planted", NULL, -1, functions};

PyMODINIT_FUNC PyInit_planted(void)
{
    return PyModule_Create(&module);
}
