# threads: whether more of them can be started, by the system's own calls, whatever a program has put in the place of
# Python's threads. No state.

import os

cdef extern from *:
    """
    #include <pthread.h>
    #include <stdlib.h>

    static void* sk_wait(void* gate) {
        pthread_mutex_lock((pthread_mutex_t*)gate);
        pthread_mutex_unlock((pthread_mutex_t*)gate);
        return NULL;
    }

    /* Starts so many threads, and ends them again; the error of the first that cannot be started, else 0. */
    static int sk_try_threads(int number) {
        pthread_mutex_t gate = PTHREAD_MUTEX_INITIALIZER;
        pthread_t* threads = (pthread_t*)malloc(number * sizeof(pthread_t));
        int started = 0, error = threads == NULL ? 12 : 0;
        pthread_mutex_lock(&gate);
        while (!error && started < number) {
            error = pthread_create(&threads[started], NULL, sk_wait, &gate);
            started += !error;
        }
        pthread_mutex_unlock(&gate);
        while (started > 0)
            pthread_join(threads[--started], NULL);
        free(threads);
        return error;
    }
    """
    int sk_try_threads(int number) nogil


def check_threads(int number):
    """OSError where so many more threads cannot be started (see `ulimit -u`). Blocks for a moment."""
    cdef int error
    with nogil:
        error = sk_try_threads(number)
    if error:
        raise OSError(error, f"{number} more threads cannot be started: {os.strerror(error)}")
