/* See threads.h. Threads are begun for each call and end with it, which takes some twenty microseconds: there is none
   that spins while another process wants its core, and none that a fork would lack. */

#define _GNU_SOURCE

#include "threads.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#ifdef __GLIBC__
#include <sched.h>
#endif

struct shared {
    one_row *one;
    const void *told;
    ptrdiff_t rows, helpers;
    atomic_ptrdiff_t next, begun;
#ifdef __GLIBC__
    cpu_set_t cores;
#endif
    pthread_t threads[];
};

static void work(struct shared *s, ptrdiff_t thread)
{
    for (ptrdiff_t row; (row = atomic_fetch_add(&s->next, 1)) < s->rows;)
        s->one(s->told, row, thread);
}

static void *help(void *given)
{
    struct shared *s = given;
#ifdef __GLIBC__
    sched_setaffinity(0, sizeof s->cores, &s->cores); /* from here on it may go where the system wants it */
#endif
    work(s, atomic_fetch_add(&s->begun, 1));
    return NULL;
}

/* A thread that begins on the next core, if that can be had. Linux has it wait behind the one that begins it where the
   others sleep, as the cores of a virtual machine then seem to be gone: for 9 ms, where there was work for 5. It is told
   before there is a thread: one that has ended already is nobody, and Linux takes that for who asks. */
static int begin_thread(struct shared *s, int *core)
{
    pthread_t *thread = s->threads + s->helpers;
#ifdef __GLIBC__
    pthread_attr_t how;
    if (*core >= 0 && !pthread_attr_init(&how)) {
        cpu_set_t next;
        do
            *core = (*core + 1) % CPU_SETSIZE;
        while (!CPU_ISSET(*core, &s->cores));
        CPU_ZERO(&next);
        CPU_SET(*core, &next);
        const int failed = pthread_attr_setaffinity_np(&how, sizeof next, &next) || pthread_create(thread, &how, help, s);
        pthread_attr_destroy(&how);
        if (!failed)
            return 1;
    }
#endif
    return !pthread_create(thread, NULL, help, s);
}

struct shared *begin_sharing(ptrdiff_t rows, ptrdiff_t threads, one_row *one, const void *told)
{
    const ptrdiff_t most = threads < rows ? threads : rows;
    struct shared *s = calloc(1, sizeof *s + sizeof(pthread_t) * (size_t)most);
    int core = -1;
    if (!s)
        return NULL;
    s->one = one, s->told = told, s->rows = rows, s->begun = 1;
#ifdef __GLIBC__
    if (most > 1 && !sched_getaffinity(0, sizeof s->cores, &s->cores))
        core = sched_getcpu();
#endif
    /* Where no thread can be had, the rows are trained all the same. */
    while (s->helpers < most - 1 && begin_thread(s, &core))
        s->helpers++;
    return s;
}

int is_taken(const struct shared *s)
{
    return s->next >= s->rows;
}

void end_sharing(struct shared *s)
{
    work(s, 0);
    while (s->helpers)
        pthread_join(s->threads[--s->helpers], NULL);
    free(s);
}

void share(ptrdiff_t rows, ptrdiff_t threads, one_row *one, const void *told)
{
    struct shared *s = threads > 1 ? begin_sharing(rows, threads, one, told) : NULL;
    if (s)
        end_sharing(s);
    else
        for (ptrdiff_t row = 0; row < rows; row++)
            one(told, row, 0);
}
