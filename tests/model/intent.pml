/* Row 7: an INTENT belongs to one reserved association, so a takeover has few messages in doubt.
 *
 * A message is accepted, waits in the queue, is given an idle association (a slot), has its INTENT
 * made durable, its final dot let go, and its RESULT made durable. The INTENT may ride on the accept
 * record if a slot was idle and is reserved for it; a reservation given back writes RESULT(not sent).
 * A lost reply is RESULT(unknown). The owner may die between any two steps, so what must hold at a
 * takeover must hold always.
 *
 * Promises: no more INTENTs without RESULT than there are slots; and each message whose dot left
 * without a known outcome is on the list (INTENT without RESULT, or RESULT(unknown)).
 *
 * Wrong: ON_EVERY_ACCEPT  every accept record carries an INTENT
 *        DOT_FIRST        the dot leaves before the INTENT is durable
 */
#define SLOTS 2
#define MESSAGES 4

byte accepted = 0;             /* how many so far */
bool queued[MESSAGES];         /* waits for a slot */
byte given[SLOTS];             /* message + 1 that the slot is reserved for; 0: idle */
bool intent[MESSAGES];         /* durable, and no RESULT stands against it */
bool unknown[MESSAGES];        /* RESULT(unknown) is durable */
bool in_flight[MESSAGES];      /* the peer may have it, and we cannot tell */
byte unresolved = 0;

#define WAITING (queued[0] || queued[1] || queued[2] || queued[3])

inline check() {
  d_step {
    assert(unresolved <= SLOTS);
    n = 0;
    do
    :: n < MESSAGES -> assert(!in_flight[n] || intent[n] || unknown[n]); n++
    :: else -> break
    od;
    n = 0
  }
}

inline write_intent(m) {
  if
  :: !intent[m] -> intent[m] = true; unresolved++
  :: else
  fi
}

inline write_result(m) { intent[m] = false; unresolved-- }

proctype accept() {
  byte n = 0;
  do
  :: accepted < MESSAGES ->
     atomic {
       if
#ifdef ON_EVERY_ACCEPT
       :: true -> write_intent(accepted); queued[accepted] = true
#else
       :: true -> queued[accepted] = true
       :: given[0] == 0 -> given[0] = accepted + 1; write_intent(accepted)  /* it rides along */
       :: given[1] == 0 -> given[1] = accepted + 1; write_intent(accepted)
#endif
       fi;
       accepted++; check()
     }
  :: accepted == MESSAGES -> break
  od
}

proctype slot(byte me) {
  byte x = 0, n = 0;
  do
  :: atomic {
       given[me] == 0 && WAITING ->
       if
       :: queued[0] -> x = 0
       :: queued[1] -> x = 1
       :: queued[2] -> x = 2
       :: queued[3] -> x = 3
       fi;
       queued[x] = false; given[me] = x + 1; x = 0
     }
  :: given[me] > 0 ->
     x = given[me] - 1;
#ifdef DOT_FIRST
     atomic { in_flight[x] = true; check() };
     atomic { write_intent(x); check() };
#else
     atomic { write_intent(x); check() };
     if
     :: atomic { write_result(x); check() };               /* given back: not sent */
        atomic { queued[x] = true; given[me] = 0; x = 0 };
        goto idle
     :: true
     fi;
     atomic { in_flight[x] = true; check() };
#endif
     if
     :: in_flight[x] = false;                               /* the reply is here: its outcome is known */
        atomic { write_result(x); check() }
     :: atomic { write_result(x); unknown[x] = true; check() }   /* the reply was lost */
     fi;
     atomic { given[me] = 0; x = 0 };
idle:
     skip
  :: accepted == MESSAGES && given[me] == 0 && !WAITING -> break
  od
}

init { atomic { run accept(); run slot(0); run slot(1) } }
