/* A produce client that costs almost nothing: it sends prebuilt requests and measures when they are answered.
 *
 *   flood [-c CONNECTIONS] [-f IN_FLIGHT] [-r RATE] [-t SECONDS] [-w WARMUP_SECONDS] [-n REQUESTS] [-s] -e ERROR_OFFSET
 *         HOST PORT REQUEST_FILE...
 *
 * Closed loop (no -r): every connection keeps IN_FLIGHT requests outstanding; latency counts from the first byte sent.
 * Open loop (-r): RATE requests per second in all, at evenly spaced times, the connections taking turns; latency counts
 * from the time a request was due, so falling behind shows. IN_FLIGHT is then the most a connection has outstanding.
 *
 * A request file holds one whole frame; its correlation id (bytes 8 to 11) is replaced. With F files connection i sends
 * file i modulo F, then goes on in steps of CONNECTIONS, so that all files are sent however many connections there are.
 * The error code of an answer, the two bytes at ERROR_OFFSET behind the length prefix, must be 0.
 *
 * What happens in the first WARMUP_SECONDS is only counted in `all_requests`. The end comes after SECONDS, or with -n once
 * so many requests are sent; then answers to what is outstanding are awaited for some seconds. Prints one line of JSON;
 * -s adds the answers and the worst latency of each second. Exit code 1: could not connect, the broker closed a connection,
 * or answered out of order.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define HEAD 12 /* length, api key, version and correlation id: a connection's own copy, the rest of a frame is shared */
#define ANSWER_MAX 16384
#define LATENCIES_MAX ((size_t)100 * 1000 * 1000)
#define SERIES_MAX 100000
#define DRAIN_SECONDS 5.0
#define CONNECT_BURST 32 /* below Kafka's default backlog of 50: who overflows it waits a second */
#define CONNECT_PAUSE_US 10000

struct request {
    char *frame;
    size_t size;
};

struct connection {
    int fd, index, outstanding, want_write;
    int file;                /* of the frame under way, or the next one */
    char head[HEAD];
    size_t size, sent;       /* of the frame under way; equal: none */
    uint32_t next_id, next_answer;
    double *due;             /* by id modulo in_flight */
    size_t in_size;
    char in[ANSWER_MAX];
};

static struct request *requests;
static struct connection *connections;
static int n_requests, n_connections = 1, in_flight = 1, epoll_fd, first_error;
static size_t error_offset;
static double began, counted_from, end, rate;
static double *latencies; /* touched only as far as used */
static size_t n_latencies, all_requests, errors, started, requests_max;
static uint32_t *series_answers;
static double *series_worst;

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void fail(const char *what)
{
    fprintf(stderr, "flood: %s: %s\n", what, strerror(errno));
    exit(1);
}

static void *allocate(size_t count, size_t size)
{
    void *memory = calloc(count, size);
    if (!memory) fail("memory");
    return memory;
}

static struct request read_request(const char *path)
{
    struct request request;
    FILE *file = fopen(path, "rb");
    if (!file || fseek(file, 0, SEEK_END) < 0) fail(path);
    request.size = (size_t)ftell(file);
    rewind(file);
    request.frame = allocate(request.size, 1);
    if (request.size <= HEAD || fread(request.frame, 1, request.size, file) != request.size) fail(path);
    fclose(file);
    return request;
}

static int connect_to(const char *host, int port)
{
    int fd = socket(AF_INET, SOCK_STREAM, 0), one = 1;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    if (fd < 0 || inet_pton(AF_INET, host, &address.sin_addr) != 1) fail(host);
    if (connect(fd, (struct sockaddr *)&address, sizeof address) < 0) fail("connect");
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    fcntl(fd, F_SETFL, O_NONBLOCK);
    return fd;
}

static void watch(struct connection *c, int write)
{
    struct epoll_event event = {.events = EPOLLIN | (write ? (uint32_t)EPOLLOUT : 0), .data.ptr = c};
    if (c->want_write == write) return;
    if (epoll_ctl(epoll_fd, c->want_write < 0 ? EPOLL_CTL_ADD : EPOLL_CTL_MOD, c->fd, &event) < 0) fail("epoll_ctl");
    c->want_write = write;
}

/* Continue the frame under way. 1: it is out. 0: the socket is full; epoll tells when to go on. */
static int push(struct connection *c)
{
    char *frame = requests[c->file].frame;
    while (c->sent < c->size) {
        size_t body_from = c->sent < HEAD ? HEAD : c->sent;
        struct iovec parts[2] = {{c->head + c->sent, c->sent < HEAD ? HEAD - c->sent : 0},
                                 {frame + body_from, c->size - body_from}};
        struct msghdr message = {.msg_iov = c->sent < HEAD ? parts : parts + 1, .msg_iovlen = c->sent < HEAD ? 2 : 1};
        ssize_t n = sendmsg(c->fd, &message, MSG_NOSIGNAL);
        if (n < 0) {
            if (errno == EAGAIN) { watch(c, 1); return 0; }
            fail("send");
        }
        c->sent += (size_t)n;
    }
    watch(c, 0);
    c->file += n_connections;
    if (c->file >= n_requests) c->file = c->index % n_requests;
    return 1;
}

static int has_room(struct connection *c)
{
    return c->sent == c->size && c->outstanding < in_flight && (!requests_max || started < requests_max);
}

static int start_request(struct connection *c, double due)
{
    uint32_t id = htonl(c->next_id);
    memcpy(c->head, requests[c->file].frame, 8);
    memcpy(c->head + 8, &id, 4);
    c->due[c->next_id % (uint32_t)in_flight] = due;
    c->next_id++;
    c->outstanding++;
    started++;
    c->size = requests[c->file].size;
    c->sent = 0;
    return push(c);
}

static void count(struct connection *c, const char *answer, double time)
{
    double latency = time - c->due[c->next_answer % (uint32_t)in_flight];
    uint32_t id;
    uint16_t code;
    memcpy(&id, answer, 4);
    memcpy(&code, answer + error_offset, 2);
    if (ntohl(id) != c->next_answer) { errno = EPROTO; fail("answers are not in the order of the requests"); }
    if (code != 0) {
        if (!errors) first_error = (int16_t)ntohs(code);
        errors++;
    }
    c->next_answer++;
    c->outstanding--;
    all_requests++;
    if (time < counted_from || time >= end) return;
    if (n_latencies < LATENCIES_MAX) latencies[n_latencies++] = latency;
    if (series_answers) {
        size_t second = (size_t)(time - counted_from);
        if (second >= SERIES_MAX) return;
        series_answers[second]++;
        if (latency > series_worst[second]) series_worst[second] = latency;
    }
}

static void take_answers(struct connection *c)
{
    for (;;) {
        ssize_t n = recv(c->fd, c->in + c->in_size, ANSWER_MAX - c->in_size, 0);
        if (n == 0) { errno = ECONNRESET; fail("the broker closed the connection"); }
        if (n < 0) { if (errno == EAGAIN) return; fail("recv"); }
        c->in_size += (size_t)n;
        size_t at = 0;
        double time = now();
        while (c->in_size - at >= 4) {
            uint32_t length;
            memcpy(&length, c->in + at, 4);
            length = ntohl(length);
            if (length + 4 > ANSWER_MAX || length < error_offset + 2) { errno = EMSGSIZE; fail("answer"); }
            if (c->in_size - at < length + 4) break;
            count(c, c->in + at + 4, time);
            at += length + 4;
        }
        memmove(c->in, c->in + at, c->in_size - at);
        c->in_size -= at;
        if (n < ANSWER_MAX / 2) return; /* most likely empty now; if not, epoll tells */
    }
}

/* Send what is due, and set the timer for the next one. A connection without room holds the others up: it is its turn. */
static void send_due(int timer_fd, double *next_due, int *turn)
{
    double time = now();
    while (*next_due <= time) {
        struct connection *c = &connections[*turn];
        if (!has_room(c)) return;
        start_request(c, *next_due);
        *turn = (*turn + 1) % n_connections;
        *next_due += 1 / rate;
    }
    struct itimerspec timer = {.it_value = {(time_t)*next_due, (long)((*next_due - (double)(time_t)*next_due) * 1e9)}};
    if (timerfd_settime(timer_fd, TFD_TIMER_ABSTIME, &timer, NULL) < 0) fail("timerfd_settime");
}

static long outstanding(void)
{
    long sum = 0;
    for (int i = 0; i < n_connections; i++) sum += connections[i].outstanding;
    return sum;
}

/* Both loops; what is late at the end (open loop: was due and could not be sent) is returned. */
static double run(void)
{
    int timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK), turn = 0, sending = 1;
    struct epoll_event on_timer = {.events = EPOLLIN, .data.ptr = NULL}, events[64];
    double next_due = began, late = 0;
    if (timer_fd < 0 || epoll_ctl(epoll_fd, EPOLL_CTL_ADD, timer_fd, &on_timer) < 0) fail("timerfd");
    if (rate > 0) send_due(timer_fd, &next_due, &turn);
    else for (int i = 0; i < n_connections; i++) while (has_room(&connections[i]) && start_request(&connections[i], now())) {}
    for (;;) {
        int n = epoll_wait(epoll_fd, events, 64, 50);
        double time = now();
        if (sending && requests_max && all_requests >= requests_max && time < end) end = time;
        if (sending && time >= end) {
            sending = 0;
            late = rate > 0 && next_due < end ? (end - next_due) * rate : 0;
        }
        if (!sending && (outstanding() == 0 || time >= end + DRAIN_SECONDS)) return late;
        for (int i = 0; i < n; i++) {
            struct connection *c = events[i].data.ptr;
            uint64_t expirations;
            if (!c) { if (read(timer_fd, &expirations, sizeof expirations) < 0 && errno != EAGAIN) fail("timer"); continue; }
            if (events[i].events & EPOLLOUT) push(c);
            if (events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR)) take_answers(c);
            if (sending && rate == 0) while (has_room(c) && start_request(c, now())) {}
        }
        if (sending && rate > 0) send_due(timer_fd, &next_due, &turn);
    }
}

static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double percentile_ms(double share)
{
    if (!n_latencies) return 0;
    size_t at = (size_t)(share * (double)n_latencies);
    return 1e3 * latencies[at < n_latencies ? at : n_latencies - 1];
}

static void print(double seconds, double late)
{
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    double cpu = (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec)
        + (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6;
    qsort(latencies, n_latencies, sizeof *latencies, ascending);
    printf("{\"requests\": %zu, \"all_requests\": %zu, \"seconds\": %.3f, \"requests_per_s\": %.1f, \"p50_ms\": %.3f, "
           "\"p99_ms\": %.3f, \"p999_ms\": %.3f, \"max_ms\": %.3f, \"errors\": %zu, \"first_error\": %d, "
           "\"unanswered\": %ld, \"late\": %.0f, \"client_cpu_s\": %.2f",
           n_latencies, all_requests, seconds, (double)n_latencies / seconds, percentile_ms(0.5), percentile_ms(0.99),
           percentile_ms(0.999), percentile_ms(1.0), errors, first_error, outstanding(), late, cpu);
    if (series_answers) {
        printf(", \"series\": [");
        for (size_t i = 0; i < (size_t)seconds && i < SERIES_MAX; i++)
            printf("%s[%u, %.3f]", i ? ", " : "", series_answers[i], 1e3 * series_worst[i]);
        printf("]");
    }
    printf("}\n");
}

int main(int argc, char **argv)
{
    double seconds = 1, warmup = 0;
    for (int option; (option = getopt(argc, argv, "c:f:r:t:w:n:e:s")) != -1;) switch (option) {
        case 'c': n_connections = atoi(optarg); break;
        case 'f': in_flight = atoi(optarg); break;
        case 'r': rate = atof(optarg); break;
        case 't': seconds = atof(optarg); break;
        case 'w': warmup = atof(optarg); break;
        case 'n': requests_max = (size_t)atol(optarg); break;
        case 'e': error_offset = (size_t)atoi(optarg); break;
        case 's':
            series_answers = allocate(SERIES_MAX, sizeof *series_answers);
            series_worst = allocate(SERIES_MAX, sizeof *series_worst);
            break;
        default: return 2;
    }
    if (argc - optind < 3 || n_connections < 1 || in_flight < 1 || error_offset < 4 || rate < 0) {
        fprintf(stderr, "flood: see the head of flood.c for the usage\n");
        return 2;
    }
    n_requests = argc - optind - 2;
    requests = allocate((size_t)n_requests, sizeof *requests);
    for (int i = 0; i < n_requests; i++) requests[i] = read_request(argv[optind + 2 + i]);
    connections = allocate((size_t)n_connections, sizeof *connections);
    latencies = malloc(LATENCIES_MAX * sizeof *latencies);
    epoll_fd = epoll_create1(0);
    if (!latencies || epoll_fd < 0) fail("start");
    for (int i = 0; i < n_connections; i++) {
        struct connection *c = &connections[i];
        c->index = i;
        c->file = i % n_requests;
        c->due = allocate((size_t)in_flight, sizeof *c->due);
        c->fd = connect_to(argv[optind], atoi(argv[optind + 1]));
        c->want_write = -1;
        watch(c, 0);
        if (i % CONNECT_BURST == CONNECT_BURST - 1) usleep(CONNECT_PAUSE_US);
    }
    began = now();
    counted_from = began + warmup;
    end = counted_from + seconds;
    double late = run();
    print(end - counted_from, late);
    return 0;
}
